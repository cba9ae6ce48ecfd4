"""Output folders of `l2g predict` made by hand: squares that move over a plain video."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask

from local2global.app.report.film import Film
from local2global.app.report.page import Content, Lane, Row, write_page
from local2global.app.report.run import Identity, Run
from local2global.app.video import VideoWriter, open_source

SIZE = (64, 96)
NAMES = {5: "person", 9: "dog"}
#: A name that runs a program in a page that does not escape it.
HOSTILE = '</script><img src=x onerror="window.hacked=1">\'&{{7*7}}'


def square(left: int, top: int, side: int = 16) -> dict:
    """The RLE of a square in a frame of `SIZE`."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def entry(identity: int, left: int, top: int, score: float = 0.8, category: int = 5, side: int = 16) -> dict:
    """An object of a frame."""
    box = [left, top, side, side]
    mask = square(left, top, side)
    return {"id": identity, "category_id": category, "score": score, "bbox": box, "segmentation": mask}


def write_source(path: Path, frames: int, cut: int | None = None) -> Path:
    """A video at 10 frames per second: dark grey, from frame `cut` on light grey."""
    with VideoWriter(path, 10, SIZE) as writer:
        for t in range(frames):
            level = 60 if cut is None or t < cut else 200
            writer.write(torch.full((3, *SIZE), level, dtype=torch.uint8))
    return path


def write_folder(folder: Path, frames: list[list[dict]], source: Path, names: dict = NAMES, **made) -> Path:
    """The record of a run on `source`."""
    folder.mkdir(parents=True)
    video = {"name": source.stem, "width": SIZE[1], "height": SIZE[0], "fps": 10.0, "file_names": None}
    about = {
        "video": video,
        "categories": [{"id": key, "name": name} for key, name in names.items()],
        "run": {"source": open_source(source).identity},
        "made": {"video": str(source), "weights": "model.pth", **made},
    }
    (folder / "stream.json").write_text(json.dumps(about))
    lines = [{"index": t, "time": t / 10, "objects": objects} for t, objects in enumerate(frames)]
    (folder / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def moving(frames: int = 20) -> list[list[dict]]:
    """Two squares: a person that moves right; a dog with a gap on frames 8 to 11, a person from frame 15 on."""
    return [
        [
            entry(3, 2 * t, 4, 0.5 + 0.02 * t),
            *([] if 8 <= t < 12 else [entry(7, 60, 40, 0.9 - 0.01 * t, 9 if t < 15 else 5)]),
        ]
        for t in range(frames)
    ]


def large_page(folder: Path, identities: int = 100, frames: int = 3000) -> tuple[Path, int]:
    """A page of made-up identities with irregular boxes and outlines of 45 bytes, and its number of outlines."""
    draws = np.random.default_rng(0)
    video = write_source(folder / "large.mp4", 20)
    tracks = {}
    for number in range(identities):
        path = np.cumsum(draws.normal(0, 3, (frames, 2)), 0) + (400, 300)
        boxes = np.concatenate([path, path + draws.normal((80, 120), 2, (frames, 2))], 1).astype(np.float32)
        scores = (0.6 + 0.3 * np.sin(np.arange(frames) / 50 + number) + draws.normal(0, 0.02, frames)).clip(
            0, 1
        )
        outlines = [
            (t, b"\1\x15" + draws.integers(0, 60, 42, np.uint8).tobytes()) for t in range(0, frames, 5)
        ]
        tracks[number] = Identity(
            number, array("I", range(frames)), array("f", scores), array("f", boxes.ravel()), [(0, 5)], outlines, 0,
            square(0, 0),
        )  # fmt: skip
    run = Run("run", "large", (720, 1280), 25.0, NAMES, lambda: iter(()))
    run.times, run.identities = np.arange(frames) / 25, tracks
    rows = [Row(number, [Lane(track)]) for number, track in tracks.items()]
    page = write_page(folder / "large.html", Content("large", [run], rows), Film(video, [], {}))
    return page, sum(len(track.outlines) for track in tracks.values())
