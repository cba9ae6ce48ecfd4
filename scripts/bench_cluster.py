"""Section on many videos: `l2g predict --ray` with two workers, pinned to one core each, against one pinned worker."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench_common import ROOT, Bench, Row, command_row, write_video

from local2global.app.cluster.videos import VideoWorker
from local2global.config.saved import save_resolved
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.weights.checkpoint import save_checkpoint

SIZE = (360, 640)
ROUNDS = 3  # a round takes more than a minute


def cluster(bench: Bench) -> Iterator[Row]:
    """Seconds per video once all workers are busy, by the wall clock; Ray and the driver use the same cores.

    A round is a command with one worker and one with two.  The results agree if all records are equal, byte by byte.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("the section cluster needs two cores")
    videos, length = (8, 20) if bench.quick else (16, 60)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _write_run(folder / "run")
        (folder / "videos").mkdir()
        scenes = load_shapes("demo", videos, 0, length, (SIZE[0] // 4, SIZE[1] // 4)).videos
        for number, scene in enumerate(scenes):
            write_video(folder / "videos" / f"{number}.mp4", scene, length, SIZE)
        times: tuple[list[float], list[float]] = ([], [])
        agree = True
        for turn in range(ROUNDS):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                output = folder / f"{turn}-{i}"
                times[i].append(_predict(folder, output, cores[: 2 - i]))
            agree &= _records(folder / f"{turn}-0") == _records(folder / f"{turn}-1")
        name = f"two workers, {videos} videos of {length} frames"
        yield {**command_row(name, times, agree), "section": "cluster"}


def _write_run(folder: Path) -> None:
    """A run folder with random weights of the demo's model."""
    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "demo" / "l2g_tiny.py", ["model.threshold=0.0"])
    folder.mkdir()
    save_resolved(config, folder / "config.yaml")
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(config.model).state_dict()})


def _predict(folder: Path, output: Path, cores: Sequence[int]) -> float:
    """Seconds per video with one worker per core, from the first video of the last worker to the last video."""
    command = [
        sys.executable,
        "-m",
        "local2global",
        "predict",
        f"{folder}/videos/*.mp4",
        "--output",
        str(output),
    ]
    command += ["--weights", str(folder / "run"), "--device", "cpu", "--ray", "local"]
    own = os.sched_getaffinity(0)
    with output.with_suffix(".log").open("w") as log:
        os.sched_setaffinity(0, cores)  # the command inherits it
        try:
            process = subprocess.Popen([*command, "--workers", str(len(cores))], stdout=log, stderr=log)
        finally:
            os.sched_setaffinity(0, own)
        pinned: dict[int, int] = {}
        while process.poll() is None:
            for worker in _workers():
                if worker not in pinned and len(pinned) < len(cores):
                    pinned[worker] = cores[len(pinned)]
                if worker in pinned:
                    _pin(worker, pinned[worker])
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(output.with_suffix(".log").read_text())
    ends = sorted(path.stat().st_mtime for path in output.glob("*/done.json"))
    return (ends[-1] - ends[len(cores) - 1]) / (len(ends) - len(cores))


def _workers() -> Iterator[int]:
    """Process ids of Ray's actors, which are named after their class."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(f"ray::{VideoWorker.__name__}".encode()):
                yield int(path.parent.name)
        except OSError:
            continue


def _pin(process: int, core: int) -> None:
    """Pins all threads of a process."""
    for thread in Path(f"/proc/{process}/task").glob("*"):
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except OSError:
            continue


def _records(output: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(output.glob("*/frames.jsonl"))}
