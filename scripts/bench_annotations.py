"""Measure a training file of the size of YouTube-VIS 2021's: loading, and the memory of worker processes.

    python scripts/bench_annotations.py [--lists] [--epochs 2] [--workers 4]
    python scripts/bench_annotations.py --videos 607 --tracks 3579 --frames 69      # OVIS

The file is generated, by default with 2,985 videos of 30 frames and 5,981 tracks, about 228 MB.  Prints one JSON
object: seconds of processor time of `json.load` and of our reader, alternated, and the growth of each worker's memory
(proportional set size, Linux) from its first clip to the end of the epochs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import build_train_loader
from local2global.data.readers.rle import encode_mask
from local2global.data.readers.youtube_vis import load_youtube_vis

SIZE, SHOWN = (180, 320), 4
#: Small clips: memory is measured, not decoding.
AUGMENT = ClipAugmentation(edges=[90], max_size=160)


def masks(number: int) -> list[dict[str, Any]]:
    """Ellipses with rough edges, about 1,200 characters each."""
    draw, (y, x) = np.random.default_rng(0), np.mgrid[: SIZE[0], : SIZE[1]]
    made = []
    for _ in range(number):
        centre, radius = draw.uniform(60, 120, 2), draw.uniform(50, 85, 2)
        distance = ((y - centre[0]) / radius[0]) ** 2 + ((x - 2 * centre[1]) / (1.6 * radius[1])) ** 2
        made.append(encode_mask(torch.from_numpy(distance + draw.normal(0, 0.035, SIZE) < 1)))
    return made


def uncompressed(mask: dict[str, Any]) -> dict[str, Any]:
    """The same mask with run lengths as a list, as YouTube-VIS has them."""
    from pycocotools import mask as coco_mask

    flat = np.concatenate([[0], coco_mask.decode(mask).T.ravel(), [0]])
    ends = np.flatnonzero(np.diff(flat))
    runs = np.diff(ends, prepend=0, append=SIZE[0] * SIZE[1]).tolist()
    return {"size": mask["size"], "counts": runs if runs[-1] else runs[:-1]}


def write_dataset(folder: Path, videos: int, tracks: int, length: int, lists: bool) -> Path:
    """Write the annotation file, and the frames of four folders that all videos share."""
    shapes = masks(64)
    if lists:
        shapes = [uncompressed(mask) for mask in shapes]
    for number in range(SHOWN):
        (folder / "frames" / f"{number}").mkdir(parents=True)
        for t in range(length):
            pixels = np.random.default_rng(t).integers(0, 255, (9, 16, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize(SIZE[::-1])
            picture.save(folder / "frames" / f"{number}" / f"{t:05d}.jpg")
    size = {"height": SIZE[0], "width": SIZE[1], "length": length}
    listed, annotations = [], []
    for v in range(1, videos + 1):
        names = [f"{v % SHOWN}/{t:05d}.jpg" for t in range(length)]
        listed.append({"id": v, **size, "file_names": names})
        while len(annotations) < v * tracks / videos:
            identity = len(annotations) + 1
            track = [shapes[(7 * identity + t) % len(shapes)] for t in range(length)]
            areas, boxes = [9000 + t for t in range(length)], [[20.0, 30.0, 150.0, 120.0]] * length
            entry = {"id": identity, "video_id": v, "category_id": 1 + identity % 40, "iscrowd": 0, **size}
            annotations.append({**entry, "areas": areas, "bboxes": boxes, "segmentations": track})
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 41)]
    path = folder / "train.json"
    path.write_text(json.dumps({"videos": listed, "annotations": annotations, "categories": categories}))
    return path


def processor_seconds(function: Any) -> float:
    """Seconds of processor time of one call."""
    gc.collect()
    begin = time.process_time()
    function()
    return time.process_time() - begin


def read(path: Path) -> None:
    """The peer: the standard library alone."""
    with path.open() as file:
        json.load(file)


def proportional_memory(process: int) -> float:
    """MB of a process: its own pages, and its share of those that it shares."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1000


def children() -> list[int]:
    """The processes that this one has started."""
    found = [path.read_text().split() for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    return [int(process) for part in found for process in part]


def measure_workers(dataset: Any, workers: int, epochs: int) -> dict[str, Any]:
    """Memory of worker processes after their first clips and after some epochs."""
    loader = build_train_loader(dataset, 2, AUGMENT, total_batch_size=8, num_workers=workers)
    batches = iter(loader)
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    next(batches)
    before = {process: proportional_memory(process) for process in children()}
    for _ in islice(batches, epochs * len(dataset) // 8):
        pass
    growth = [proportional_memory(process) - before[process] for process in before]
    return {"first_batch_seconds": first, "growth_mb": growth, "memory_mb": list(before.values())}


def main() -> None:
    """Print the measurements."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--lists", action="store_true", help="run lengths as lists instead of text")
    flags.add_argument("--videos", type=int, default=2985)
    flags.add_argument("--tracks", type=int, default=5981)
    flags.add_argument("--frames", type=int, default=30)
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--workers", type=int, default=4)
    flags.add_argument("--rounds", type=int, default=2)
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = (arguments.videos, arguments.tracks, arguments.frames)
        path = write_dataset(folder, *number, arguments.lists)
        times: dict[str, list[float]] = {"json": [], "ours": []}
        for _ in range(arguments.rounds):
            times["json"].append(processor_seconds(lambda: read(path)))
            times["ours"].append(processor_seconds(lambda: load_youtube_vis(folder / "frames", path)))
        result: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6, **times}
        result["ratio"] = min(times["ours"]) / min(times["json"])
        begin = time.perf_counter()
        dataset = load_youtube_vis(folder / "frames", path)
        result["load_seconds"] = time.perf_counter() - begin
        if arguments.epochs:
            result |= measure_workers(dataset, arguments.workers, arguments.epochs)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
