"""Section on the whole command: `l2g predict` from an encoded video to the files in its folder, at 720p."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from bench_common import ROOT, Bench, Row, command_row, write_video

from local2global.app import predict as command
from local2global.app.batch import predict_batch, predict_one_by_one
from local2global.app.predict import L2G
from local2global.app.video import Source, open_source
from local2global.data.generated.shapes import PRESETS, load_shapes
from local2global.lazy import instantiate, load_config

SIZE = (720, 1280)
VIDEOS = 3


def predict(bench: Bench) -> Iterator[Row]:
    """Wall time of a video with threads against without, and of `--batch` against one video after the other.

    Times are seconds per frame.  All slots of the demo's model, with random weights, are reported: up to 12 objects.
    """
    length = 20 if bench.quick else 60
    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "demo" / "l2g_tiny.py", ["model.threshold=0.0"])
    model = L2G(instantiate(config.model), bench.device)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        scenes = load_shapes(PRESETS["demo"], VIDEOS, 0, length, (SIZE[0] // 4, SIZE[1] // 4)).videos
        sources = []
        for number, scene in enumerate(scenes):
            path = folder / f"{number}.mp4"
            write_video(path, scene, length, SIZE)
            sources.append(open_source(path))

        def one(output: Path) -> None:
            model.predict(sources[0], output)

        def without_threads(output: Path) -> None:
            with ExitStack() as stack:
                threaded = command.prefetch
                stack.callback(setattr, command, "prefetch", threaded)
                command.prefetch = lambda items, *_: (item for item in items)  # type: ignore[assignment]
                model.predict(sources[0], output)

        def several(run: Callable[..., Iterator[object]], output: Path) -> None:
            copies = [replace(source, name=f"{source.name}-b") for source in sources]
            for _ in run(partial(model.predict, output_dir=output), copies, progress=_ignore):
                pass

        yield _compare(bench, "threads", one, without_threads, folder, length)
        batch, turns = partial(several, predict_batch), partial(several, predict_one_by_one)
        yield _compare(bench, "--batch", batch, turns, folder, length * VIDEOS)


def _ignore(source: Source, done: int, objects: int) -> None:
    """Progress is not shown."""


def _compare(
    bench: Bench,
    name: str,
    ours: Callable[[Path], None],
    peer: Callable[[Path], None],
    folder: Path,
    frames: int,
) -> Row:
    """Alternates two arms by the wall clock; the results agree if all records are equal, byte by byte."""
    times: tuple[list[float], list[float]] = ([], [])
    agree = True
    for turn in range(bench.rounds):
        records = {}
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            output = folder / "out"
            start = time.perf_counter()
            (ours, peer)[i](output)
            times[i].append((time.perf_counter() - start) / frames)
            records[i] = [path.read_bytes() for path in sorted(output.glob("*/frames.jsonl"))]
            shutil.rmtree(output)
        agree &= records[0] == records[1] and len(records[0]) > 0
    return command_row(f"{name}, 720p", times, agree)
