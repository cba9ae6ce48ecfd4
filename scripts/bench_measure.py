"""How the benchmark measures: two arms in one process, alternating, their results compared in the same run.

A CPU is read by `process_time` at one thread, which neither other processes' turns nor sleep count into.  A GPU is
read by events round a queue that was filled first, so that launches hide behind work as they do in a stream; `graph`
replays a captured graph instead.
"""

from __future__ import annotations

import itertools
import operator
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Arm = Callable[[], Any]
Row = dict[str, Any]

SHORTEST = 0.02  # seconds: shorter arms are repeated within one reading
QUEUE_CYCLES = 20_000_000  # about 10 ms of a GPU's clock, in which the host enqueues the reading


@dataclass(frozen=True)
class Bench:
    """What every section needs.

    Attributes:
        quick: three rounds instead of nine, and the small sizes only.
        device: where both arms run.
        compiled: also measure what `torch.compile` makes of ours.
        clock: read a GPU by the clock.
    """

    quick: bool
    device: torch.device
    compiled: bool = False
    clock: bool = False

    @property
    def by_clock(self) -> Bench:
        """The same for arms that wait for a GPU by themselves: events would not see the waiting."""
        return replace(self, clock=True)

    @property
    def rounds(self) -> int:
        """Readings of each arm."""
        return 3 if self.quick else 9

    def read(self, arm: Arm, repeats: int = 1) -> float:
        """Seconds of one call."""
        if self.device.type == "cuda":
            return (_read_clock if self.clock else _read_events)(arm, repeats)
        start = time.process_time()
        for _ in range(repeats):
            arm()
        return (time.process_time() - start) / repeats

    def compare(
        self,
        section: str,
        name: str,
        ours: Arm,
        peer: Arm | None,
        difference: float,
        limit: float,
        warm: bool = True,
        **labels: Any,
    ) -> Row:
        """One row: both arms after a warm-up, in the order A B B A, each round giving one ratio.

        Args:
            section: which part of the benchmark.
            name: the plain place or size.
            ours: our arm.
            peer: the other; None where there is nothing to compare with.
            difference: how far the arms' results are apart, measured in this run.
            limit: how far they may be.
            warm: call each arm once before the first reading; False where that has been done and is dear.
            labels: more columns: `mode`, `dtype`, `pass`, ...
        """
        arms = [ours] if peer is None else [ours, peer]
        repeats = [self._repeats(arm) if warm else 1 for arm in arms]
        times: list[list[float]] = [[] for _ in arms]
        for turn in range(self.rounds):
            for i in range(len(arms))[:: 1 if turn % 2 == 0 else -1]:
                times[i].append(self.read(arms[i], repeats[i]))
        ratios = [b / a for a, b in zip(times[0], times[-1], strict=True)]
        quarters = statistics.quantiles(ratios, n=4, method="inclusive")
        return {
            "section": section,
            "name": name,
            "mode": "eager",
            "dtype": "fp32",
            "pass": "forward",
            "ours_s": statistics.median(times[0]),
            "peer_s": statistics.median(times[1]) if peer else None,
            "ratio": statistics.median(ratios) if peer else None,
            "iqr": quarters[2] - quarters[0] if peer else None,
            "agree": difference <= limit,
            "difference": difference,
            **labels,
        }

    def _repeats(self, arm: Arm) -> int:
        first = self.read(arm)
        if first > 10 * SHORTEST:  # whatever a first call costs beside its work, this arm is not short
            return 1
        return max(1, round(SHORTEST / max(self.read(arm), 1e-6)))

    def graphed(self, arm: Arm) -> Arm | None:
        """The replay of an arm captured in a CUDA graph; None on a CPU."""
        if self.device.type != "cuda":
            return None
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                arm()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            arm()
        return graph.replay


def _read_events(arm: Arm, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(QUEUE_CYCLES)
    start.record()
    for _ in range(repeats):
        arm()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def _read_clock(arm: Arm, repeats: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        arm()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two results, as a part of the largest entry (of 1, if that is smaller)."""
    ours, theirs = ours.detach().float(), theirs.detach().float()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def disagreement(ours: Tensor, theirs: Tensor) -> float:
    """1 - IoU of two sets of masks, all pixels together."""
    union = (ours | theirs).sum()
    return float(1 - (ours & theirs).sum() / union.clamp(min=1)) if union else 0.0


def peak_memory(arm: Arm, device: torch.device) -> int:
    """Bytes that an arm needs at its peak beyond what stood before, as torch's allocator counts them.

    On a CPU resident memory would also count what malloc keeps or gives back: it differs by a tenth from run to run,
    this is the same in each.  What oneDNN takes for itself is in neither arm's number.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        arm()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        arm()
    recorded = seen.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"]
    changes.sort(key=operator.itemgetter(0))
    return max(itertools.accumulate(size for _, size in changes), default=0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, load and commit: what a number means nothing without."""
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor()
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "numpy", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "device": name,
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "commit": commit or "unknown",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
