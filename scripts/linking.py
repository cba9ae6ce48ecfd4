"""Trackers on damaged true masks of real clips: 10 % of the masks are dropped, all are eroded by 3 pixels.

    python scripts/linking.py path/to/data --json linking.json        # needs local2global[metrics]

The data folder contains `clips/` and `composites/` in YouTube-VIS format.  The masks of a frame are shuffled and have
no queries and equal scores.  Rows: IoU of consecutive frames, IoU with a memory of 8 frames, the image tracker
(`model.tracker=bypass`) with places only, and with the colours of the frames too, and the true identities, which bound
IDF1: an eroded small object no longer overlaps its true mask by half.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import binary_erosion
from torch import Tensor

from local2global.boxes import mask_to_box
from local2global.data.datasets import VideoDataset, VideoRecord
from local2global.data.readers.rle import encode_mask
from local2global.data.readers.youtube_vis import load_youtube_vis
from local2global.errors import UserError
from local2global.evaluation.identity_scores import identity_scores
from local2global.evaluation.linking import IoULinker
from local2global.evaluation.ytvis import score
from local2global.modeling.variants import ImageTracker
from local2global.structures import FramePredictions, Queries

SLOTS = 20

#: Masks (M, H, W) and the frame (3, H, W) uint8 to the identity of each mask, -1 for none.
Linker = Callable[[Tensor, Tensor], list[int]]


def damaged(video: VideoRecord, drop: float, erosion: int, seed: int) -> Iterator[Tensor]:
    """The true masks of every frame, (M, H, W) bool, eroded; dropped ones are empty."""
    random = np.random.default_rng((seed, video.id))
    for t in range(video.length):
        masks = video.masks(t).numpy()
        kept = random.random(len(masks)) >= drop
        if erosion:
            masks = np.stack([binary_erosion(mask, iterations=erosion) for mask in masks])
        yield torch.from_numpy(masks & kept[:, None, None])


def by_iou(memory: int) -> Linker:
    """Linking by mask IoU with the last mask of a track, at least .1."""
    linker = IoULinker(slots=10_000, memory=memory)

    def link(masks: Tensor, frame: Tensor) -> list[int]:
        del frame
        rows = linker.rows(masks, torch.ones(len(masks)))
        return [int((rows == row).nonzero()[0]) if (rows == row).any() else -1 for row in range(len(masks))]

    return link


def by_image_tracker(colours: bool) -> Linker:
    """`ImageTracker` without queries: a detection's row is carried as its class logit."""
    tracker, past = ImageTracker(), None

    def link(masks: Tensor, frame: Tensor) -> list[int]:
        nonlocal past
        count, (height, width) = len(masks), masks.shape[1:]
        logits = torch.full((1, SLOTS, height, width), -1.0)
        logits[0, :count] = torch.where(masks, 1.0, -1.0)
        boxes = mask_to_box(logits, torch.zeros(1, SLOTS, 4))
        row = torch.full((1, SLOTS, 1), -9.0)
        row[0, :count, 0] = 1.0 + torch.arange(count)
        extent = torch.tensor([[float(width), float(height)]])
        queries = Queries(torch.zeros(1, SLOTS, 1), boxes)
        image = frame[None].float() / 255 if colours else None
        linked = tracker.link(past, FramePredictions(row, boxes, logits, extent, queries, colours=image))
        past = linked.queries
        rows = linked.logits[0, :, 0].sub(1).round().int()
        return [int((rows == i).nonzero()[0]) if (rows == i).any() else -1 for i in range(count)]

    return link


def track(
    video: VideoRecord, link: Linker | None, drop: float, erosion: int, seed: int
) -> dict[int, list[Tensor]]:
    """The masks of every track of a video; without a linker, of every true object."""
    shuffle, tracks = np.random.default_rng((seed, video.id, 1)), {}
    empty = torch.zeros(video.size, dtype=torch.bool)
    for t, masks in enumerate(damaged(video, drop, erosion, seed)):
        order = torch.from_numpy(shuffle.permutation(len(masks)))
        names = order.tolist() if link is None else link(masks[order], video.frame(t))
        for name, row in zip(names, order.tolist(), strict=True):
            if name >= 0 and masks[row].any():
                tracks.setdefault(name, [empty] * video.length)[t] = masks[row]
    return tracks


def measure(
    dataset: VideoDataset, make: Callable[[], Linker] | None, drop: float, erosion: int, seed: int
) -> dict[str, float]:
    """IDF1, HOTA and switches of a linker; all objects count as one class."""
    truth = dataset.truth()
    truth = {**truth, "categories": [{"id": 1, "name": "object"}]}
    truth["annotations"] = [{**entry, "category_id": 1} for entry in truth["annotations"]]
    results = []
    for video in dataset.videos:
        for masks in track(video, make() if make else None, drop, erosion, seed).values():
            encoded = [encode_mask(mask) if mask.any() else None for mask in masks]
            results.append({"video_id": video.id, "category_id": 1, "score": 1.0, "segmentations": encoded})
    return identity_scores(score(truth, results))


LINKERS: dict[str, Callable[[], Linker] | None] = {
    "IoU of consecutive frames": lambda: by_iou(memory=1),
    "IoU, memory of 8 frames": lambda: by_iou(memory=8),
    "image tracker, places only": lambda: by_image_tracker(colours=False),
    "image tracker": lambda: by_image_tracker(colours=True),
    "true identities": None,
}


def main() -> None:
    """Prints one row per linker and data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with clips/ and composites/")
    parser.add_argument("--drop", type=float, default=0.1, help="share of dropped masks")
    parser.add_argument("--erosion", type=int, default=3, help="pixels")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; the table has their mean")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    options = parser.parse_args()
    names = ("IDF1", "HOTA", "AssA", "switches")
    table, scores = Table("data", "linked by", *names), {}
    for folder in ("clips", "composites"):
        file = options.data / folder / "instances.json"
        categories = json.loads(file.read_text(encoding="utf-8"))["categories"] if file.is_file() else []
        dataset = load_youtube_vis(options.data / folder / "JPEGImages", file, categories)
        for name, make in LINKERS.items():
            runs = [measure(dataset, make, options.drop, options.erosion, s) for s in range(options.seeds)]
            mean = {key: float(np.mean([run[key] for run in runs])) for key in names}
            scores[f"{folder}: {name}"] = mean
            cells = [f"{100 * mean[key]:.1f}" for key in names[:3]]
            table.add_row(folder, name, *cells, f"{mean['switches']:.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"linking.py: {error}")
