"""Small selections of real images and clips, for experiments that fit a model to them on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from .datasets import Renumbered, VideoDataset, VideoRecord, merge
from .readers.coco import load_coco
from .readers.youtube_vis import load_youtube_vis


def large_objects(root: str | Path, classes: list[dict[str, Any]], most: int, least: float) -> VideoDataset:
    """Load COCO images with few and large objects, as one class.

    Args:
        root: folder of `train2017`, `val2017`, `instances_train.json` and `instances_val.json`.
        classes: the class list; all objects have its first class.
        most: largest number of objects of an image.
        least: smallest area of an object, as a fraction of the image.

    Raises:
        UserError: if a file is missing or invalid.
    """
    datasets = [
        load_coco(Path(root, f"{split}2017"), Path(root, f"instances_{split}.json"))
        for split in ("train", "val")
    ]
    selected = [
        replace(dataset, videos=[image for image in dataset.videos if _has_few_large(image, most, least)])
        for dataset in datasets
    ]
    return one_class(merge(*selected), classes)


def _has_few_large(image: VideoRecord, most: int, least: float) -> bool:
    return len(image.labels) <= most and bool(image.masks(0).flatten(1).float().mean(1).min() >= least)


def one_class(dataset: VideoDataset, classes: list[dict[str, Any]]) -> VideoDataset:
    """The same videos, whose objects all have the first class of a list."""
    first_ids = accumulate((len(video.labels) for video in dataset.videos), initial=1)
    numbered = enumerate(zip(dataset.videos, first_ids, strict=False), start=1)
    positions = (0,) * len(dataset.classes)
    return VideoDataset([Renumbered(video, n, first, positions) for n, (video, first) in numbered], classes)


def real_clips(
    root: str | Path,
    classes: Sequence[Mapping[str, Any]],
    clips: Sequence[str] | None = None,
    composites: Sequence[str] | None = None,
) -> VideoDataset:
    """Load the named videos of `clips/` and `composites/` below `root` as one dataset.

    kitti-0001 is excluded unless named: it has two frames, and its cars are tiny.

    Args:
        root: folder of both, each in YouTube-VIS format.
        classes: the class list.
        clips: names of videos of `clips/`; None loads all, [] loads none.
        composites: the same for `composites/`.

    Raises:
        UserError: if a file is missing or invalid, or a name is unknown.
    """
    selections = [("clips", clips, ["kitti-0001"]), ("composites", composites, [])]
    return merge(
        *(
            load_youtube_vis(
                Path(root, folder, "JPEGImages"),
                Path(root, folder, "instances.json"),
                classes,
                videos=names,
                exclude=[] if names else excluded,
            )
            for folder, names, excluded in selections
            if names is None or len(names)
        )
    )
