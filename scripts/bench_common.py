"""Measurement and inputs shared by the sections of the benchmark.

Two arms run in one process in the order A B B A, and every row compares their results in the same run. CPU time is
`process_time` of this process. GPU time is read from events, with enough work queued first that launches overlap.
"""

from __future__ import annotations

import copy
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import local2global
from local2global.app.video import VideoWriter
from local2global.data.datasets import VideoRecord
from local2global.lazy import instantiate, load_config
from local2global.modeling.model import Local2Global
from local2global.modeling.variants import RememberingTracker
from local2global.structures import Clip, ClipTargets, FramePredictions, Queries

Arm = Callable[[], Any]
Row = dict[str, Any]

ROOT = Path(local2global.__file__).resolve().parents[2]
SIZES = ((384, 640), (480, 864))
OUTPUT = (720, 1280)
#: Largest difference of two arms, relative to the largest entry (or 1).
LIMITS = {"fp32": 1e-4, "bf16": 5e-2}
#: Largest 1 - IoU of two arms' masks.
MASK_LIMIT = 0.02

SHORTEST = 0.02  # seconds; shorter arms are repeated within one reading
QUEUE_CYCLES = 20_000_000  # about 10 ms on a GPU, during which the host enqueues the timed work


@dataclass(frozen=True)
class Bench:
    """Settings of a run, and the timing of two arms.

    Attributes:
        quick: 3 rounds instead of 9, and only the small sizes.
        device: device of both arms.
        compiled: also measure the compiled model.
        clock: time a GPU by the wall clock, for arms that synchronise themselves.
    """

    quick: bool
    device: torch.device
    compiled: bool = False
    clock: bool = False

    @property
    def by_clock(self) -> Bench:
        """The same settings with a wall clock on a GPU."""
        return replace(self, clock=True)

    @property
    def rounds(self) -> int:
        """Readings of each arm."""
        return 3 if self.quick else 9

    def read(self, arm: Arm, repeats: int = 1) -> float:
        """Return the seconds of one call, averaged over `repeats` calls."""
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
        """Time both arms in turns and return one row; each round gives one ratio.

        Args:
            section: section of the benchmark.
            name: name of the row.
            ours: our arm.
            peer: the other arm, or None.
            difference: measured difference of the two results.
            limit: largest allowed difference.
            warm: call each arm before the first reading.
            labels: more columns, for example `mode`, `dtype`, `pass`.
        """
        arms = [ours] if peer is None else [ours, peer]
        repeats = [self._repeats(arm) if warm else 1 for arm in arms]
        times: list[list[float]] = [[] for _ in arms]
        for turn in range(self.rounds):
            for i in range(len(arms))[:: 1 if turn % 2 == 0 else -1]:
                times[i].append(self.read(arms[i], repeats[i]))
        ratios = [b / a for a, b in zip(times[0], times[-1], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        return {
            "section": section,
            "name": name,
            "mode": "eager",
            "dtype": "fp32",
            "pass": "forward",
            "ours_s": statistics.median(times[0]),
            "peer_s": statistics.median(times[1]) if peer else None,
            "ratio": statistics.median(ratios) if peer else None,
            "iqr": quartiles[2] - quartiles[0] if peer else None,
            "agree": difference <= limit,
            "difference": difference,
            **labels,
        }

    def _repeats(self, arm: Arm) -> int:
        first = self.read(arm)
        if first > 10 * SHORTEST:
            return 1
        return max(1, round(SHORTEST / max(self.read(arm), 1e-6)))


def command_row(name: str, times: tuple[Sequence[float], Sequence[float]], agree: bool) -> Row:
    """Return the row of two commands that were timed in turns by the wall clock: ours, peer."""
    ratios = [b / a for a, b in zip(*times, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "name": name,
        "mode": "eager",
        "dtype": "fp32",
        "pass": "command",
        "ours_s": statistics.median(times[0]),
        "peer_s": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "iqr": quartiles[2] - quartiles[0],
        "agree": agree,
    }


def write_video(path: Path, scene: VideoRecord, length: int, size: tuple[int, int]) -> None:
    """Write a generated video of a quarter of the size, enlarged to `size`."""
    with VideoWriter(path, 25, size) as writer:
        for t in range(length):
            writer.write(scene.frame(t).repeat_interleave(4, 1).repeat_interleave(4, 2))


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


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, divided by max(1, largest entry of `theirs`)."""
    ours, theirs = ours.detach().float(), theirs.detach().float()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def mask_difference(ours: Tensor, theirs: Tensor) -> float:
    """1 - IoU of two boolean tensors over all pixels; 0 if both are empty."""
    union = (ours | theirs).sum()
    return float(1 - (ours & theirs).sum() / union) if union else 0.0


def resident_memory() -> int:
    """Resident bytes of this process."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, BLAS, threads, load and commit of a run."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "numpy", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    build = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    return {
        "versions": versions,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu()["name"],
        "cpu": _cpu(),
        "blas": blas[1] if blas else "unknown",
        "mkldnn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "commit": commit or "unknown",
    }


def _cpu() -> dict[str, Any]:
    """Model name, cores, vector extension, and whether the CPU multiplies bf16 in hardware."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "name": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[1].split() if flags else ())),
    }


# --- Models, frames, masks and clips ---


class Models(NamedTuple):
    """The paper's model and its peer with the same weights."""

    ours: Local2Global
    peer: Local2Global


def stir(module: nn.Module) -> None:
    """Add noise to every parameter outside the backbone, so that zero-initialised layers have an effect."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "backbone" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)


@torch.inference_mode(False)  # inference tensors have no version counter
def build_model(queries: int = 100, config: str = "configs/ytvis2021/l2g_r50.py") -> Local2Global:
    """Build a config's model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / config), [f"model.segmenter.num_queries={queries}"])
    model: Local2Global = instantiate(cfg.model).eval()
    stir(model)
    return model


@cache
@torch.inference_mode(False)
def models(device: torch.device, queries: int = 100, config: str = "configs/ytvis2021/l2g_r50.py") -> Models:
    """Build a config's model, without a memory of objects, and its peer."""
    from peer_layout import peer_of

    model = build_model(queries, config).to(device)
    if isinstance(model.tracker, RememberingTracker):
        model.tracker = model.tracker.without_memory()
    return Models(model, peer_of(model))


@cache
@torch.inference_mode(False)
def compiled(model: Local2Global) -> Local2Global:
    """Return a compiled copy; compilation runs at the first call."""
    model = copy.deepcopy(model)
    model.compile_stream()
    return model


def make_frame(size: tuple[int, int], seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """(3, H, W) uint8 frame of smooth random blobs with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 16, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]
    return (smooth + torch.randn(3, *size, generator=generator) * 8).clamp(0, 255).byte().to(device)


def past_queries(model: Local2Global, size: tuple[int, int]) -> Queries:
    """Slots after two frames of a stream."""
    with torch.inference_mode():
        return list(model.stream([make_frame(size, 1), make_frame(size, 2)]))[-1].queries


def make_masks(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, h, w) mask logits of ellipses with wavy edges; each covers about a twentieth of the frame."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=generator)
    radius = 0.06 + 0.12 * torch.rand(count, 2, 1, 1, generator=generator)
    distance = ((y - centre[:, 0]) / radius[:, 0]) ** 2 + ((x - centre[:, 1]) / radius[:, 1]) ** 2
    return 6 * (1 - distance) + 0.5 * torch.sin(40 * x + 30 * y)


def make_predictions(
    visible: int, queries: int, input_size: tuple[int, int], device: torch.device
) -> FramePredictions:
    """Predictions of one frame: `visible` slots have score 0.9 and a mask, the others score 0.02 and no mask."""
    height, width = input_size[0] // 4, input_size[1] // 4
    masks = torch.full((1, queries, height, width), -5.0)
    masks[0, :visible] = make_masks(visible, (height, width))
    logits = torch.full((1, queries, 40), -4.0)
    logits[0, :visible, 0] = 2.2
    boxes = torch.full((1, queries, 4), 0.5, device=device)
    return FramePredictions(
        logits=logits.to(device),
        boxes=boxes,
        masks=masks.to(device),
        extent=torch.tensor([[float(width), float(height)]], device=device),
        queries=Queries(torch.zeros(1, queries, 8, device=device), boxes),
    )


def make_clip(
    size: tuple[int, int], length: int, instances: int, seed: int = 0, num_classes: int = 40
) -> Clip:
    """Training clip of moving ellipses, all visible on all frames."""
    from local2global.boxes import mask_to_box

    first = make_masks(instances, size, seed) > 0
    masks = torch.stack([torch.roll(first, (3 * t, 5 * t), (1, 2)) for t in range(length)], dim=1)
    boxes = mask_to_box(masks.float(), torch.zeros(instances, length, 4))
    labels, ids = torch.arange(instances) % num_classes, torch.arange(instances)
    targets = ClipTargets(labels, ids, masks, boxes, masks.flatten(2).any(dim=-1))
    frames = torch.stack([make_frame(size, seed + t) for t in range(length)])
    return Clip(frames, size, frame_ids=tuple(range(length)), targets=targets, key=(seed, 0, 0))


def attention_inputs(place: str, size: tuple[int, int], device: torch.device) -> tuple[Any, ...]:
    """Inputs of the sampling sum: level shapes, values, locations (B, Q, heads, L, points, 2) and weights.

    Sampling points lie a few pixels from their reference point.
    """
    generator = torch.Generator().manual_seed(0)
    heads, depth, levels, points = 8, 32, 4, 4
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (64, 32, 16, 8)]
    centres = []
    for height, width in shapes:
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres.append(torch.stack((x / width, y / height), dim=-1).flatten(0, 1))
    references = torch.cat(centres) if place == "encoder" else torch.rand(100, 2, generator=generator)
    tokens, queries = sum(height * width for height, width in shapes), len(references)
    values = torch.randn(1, tokens, heads, depth, generator=generator)
    offsets = torch.randn(1, queries, heads, levels, points, 2, generator=generator) * 3
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]
    locations = references[None, :, None, None, None] + offsets / sizes
    weights = torch.randn(1, queries, heads, levels * points, generator=generator).softmax(dim=-1)
    tensors = values, locations, weights.unflatten(-1, (levels, points))
    return shapes, *(tensor.to(device) for tensor in tensors)


@contextmanager
def precision(device: torch.device, dtype: str) -> Iterator[None]:
    """Autocast to the half precision that `dtype` names: "bf16" or "fp16"."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    with torch.autocast(device.type, half, enabled=half is not None):
        yield
