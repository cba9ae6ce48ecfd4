"""Section on the whole command: `l2g predict` from an encoded video to the files in its folder, at 720p."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from bench_common import ROOT, Bench, Row, command_row, write_video

from local2global.app import predict as command
from local2global.app.predict import L2G
from local2global.app.video import open_source
from local2global.data.generated.shapes import PRESETS, load_shapes
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint

SIZE = (720, 1280)
VIDEOS = 4
OBJECTS = 3  # reported on a frame


def predict(bench: Bench) -> Iterator[Row]:
    """Wall time of a video with threads against without, and of `--batch` against one video after the other.

    Times are seconds per frame.  The rows of `--batch` are whole commands, start included: against one command per
    video, and against one command for all.  The demo's model has random weights, and reports three objects on every
    frame.
    """
    length = 60 if bench.quick else 100
    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "demo" / "l2g_tiny.py", ["model.threshold=0.0"])
    model = L2G(instantiate(config.model), bench.device)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run = folder / "run"
        run.mkdir()
        save_resolved(config, run / "config.yaml")
        save_checkpoint(run / "model_final.pth", {"model": model.module.state_dict()})
        scenes = load_shapes(PRESETS["demo"], VIDEOS, 0, length, (SIZE[0] // 4, SIZE[1] // 4)).videos
        paths = [folder / f"{number}.mp4" for number in range(VIDEOS)]
        for path, scene in zip(paths, scenes, strict=True):
            write_video(path, scene, length, SIZE)
        source = open_source(paths[0])

        def one(output: Path) -> float:
            start = time.perf_counter()
            model.predict(source, output, max_objects=OBJECTS)
            return (time.perf_counter() - start) / length

        def without_threads(output: Path) -> float:
            with ExitStack() as stack:
                threaded = command.prefetch
                stack.callback(setattr, command, "prefetch", threaded)
                command.prefetch = lambda items, *_: (item for item in items)  # type: ignore[assignment]
                return one(output)

        words = f"predict --device {bench.device} --max-objects {OBJECTS}".split()

        def command_for(*videos: str) -> Callable[[Path], float]:
            """Runs `l2g predict` on some videos, or with `--batch`; returns seconds per frame of all videos."""

            def seconds(output: Path) -> float:
                start = time.perf_counter()
                places = ["--weights", str(run), "--output", str(output)]
                whole = [sys.executable, "-m", "local2global", *words, *places, *videos]
                subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
                return (time.perf_counter() - start) / (length * VIDEOS)

            return seconds

        all_paths = list(map(str, paths))
        separate = [command_for(path) for path in all_paths]

        def each(output: Path) -> float:
            return sum(seconds(output) for seconds in separate)

        batch = command_for(*all_paths, "--batch")
        yield _compare(bench, "threads", one, without_threads, folder)
        yield _compare(bench, "--batch, a command each", batch, each, folder)
        yield _compare(bench, "--batch, one command", batch, command_for(*all_paths), folder)


def _compare(
    bench: Bench, name: str, ours: Callable[[Path], float], peer: Callable[[Path], float], folder: Path
) -> Row:
    """Alternates two arms, which return seconds; they agree if all records are equal, byte by byte."""
    times: tuple[list[float], list[float]] = ([], [])
    agree = True
    for turn in range(bench.rounds):
        records = {}
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            output = folder / "out"
            times[i].append((ours, peer)[i](output))
            records[i] = [path.read_bytes() for path in sorted(output.glob("*/frames.jsonl"))]
            shutil.rmtree(output)
        agree &= records[0] == records[1] and len(records[0]) > 0
    return command_row(f"{name}, 720p", times, agree)
