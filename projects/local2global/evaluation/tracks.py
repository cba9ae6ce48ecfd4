"""Object tracks as the files of video instance segmentation write them, read and checked.

A mask is a COCO run-length string or list; every fault names the entry that it stands in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..errors import UserError

Array = NDArray[Any]
Rle = dict[str, Any]

MOST_TRACKS = 100  # predictions of one category that are looked at in one video
OCCLUSION = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


@dataclass(frozen=True)
class Track:
    """One object of one video, predicted or true.

    Attributes:
        id: the annotation's id, or the prediction's position in the results.
        masks: one RLE with compressed counts per frame, None where the object is absent.
        pixels: (frames,) float64, the area of each mask, 0 where there is none.
        area: the mean of its non-zero areas, in pixels: the size that area ranges ask for.
        score: a prediction's confidence.
        crowd: whether a truth track stands for a crowd.
        occlusion: a truth track's occlusion in [0, 1].
    """

    id: int
    masks: tuple[Rle | None, ...]
    pixels: Array
    area: float
    score: float = 0.0
    crowd: bool = False
    occlusion: float = 0.0


def rle_runs(counts: str | bytes | Sequence[int]) -> Array:
    """The run lengths of a mask, background first.

    Args:
        counts: the compressed COCO string, or the run lengths themselves.

    Raises:
        ValueError: the string is not a COCO run-length string, or a run is negative.
    """
    if isinstance(counts, (str, bytes)):
        text = counts.encode("ascii") if isinstance(counts, str) else counts
        digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
        if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
            raise ValueError("not a run-length string")
        # Little-endian groups of five bits, bit 32 says "more follows", bit 16 of the last group is the sign.
        ends = np.flatnonzero(digits < 32)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if lengths.max() > 8:
            raise ValueError("a run of more than 40 bits")
        shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
        runs = np.add.reduceat((digits & 31) << shifts, starts)
        runs -= np.where(digits[ends] & 16, np.left_shift(1, 5 * lengths), 0)
        # From the fourth on, a run is written as its difference to the one before the last.
        runs[1::2] = np.cumsum(runs[1::2])
        runs[2::2] = np.cumsum(runs[2::2])
    else:
        runs = np.asarray(counts, dtype=np.int64)
    if runs.ndim != 1 or not len(runs) or runs.min() < 0:
        raise ValueError("a run is negative")
    return runs


def _parse_mask(rle: Any, what: Callable[[], str]) -> tuple[Rle | None, float]:
    """A mask with compressed counts, and its area in pixels."""
    if not rle:
        return None, 0.0
    try:
        height, width = (int(edge) for edge in rle["size"])
        runs = rle_runs(rle["counts"])
        if runs.sum() != height * width:
            raise ValueError(f"its runs cover {runs.sum()} pixels, its size is {height} x {width}")
        if isinstance(rle["counts"], (str, bytes)):
            plain = {"size": [height, width], "counts": rle["counts"]}
        else:
            plain = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{what()}: malformed run-length mask: {reason}") from error
    return plain, float(runs[1::2].sum())


def _mean_area(areas: Sequence[float | None]) -> float:
    found = [area for area in areas if area]
    return float(np.mean(found)) if found else 0.0


def occlusion_score(levels: Sequence[str | None]) -> float:
    """OVIS: the mean over the most occluded half (rounded up) of the frames that have a level; in [0, 1]."""
    values = sorted((OCCLUSION[level] for level in levels if level is not None), reverse=True)
    half = values[: (len(values) + 1) // 2]
    return sum(half) / len(half) if half else 0.0


def _parse_track(entry: Mapping[str, Any], identity: int, name: str, **fields: Any) -> Track:
    segmentations = entry.get("segmentations")
    if not isinstance(segmentations, Sequence) or isinstance(segmentations, str):
        raise UserError(f"{name}: expected a list `segmentations`, one mask or null per frame")
    # The place is only spelled out when it is needed: a file holds a hundred thousand masks.
    pairs = [_parse_mask(rle, lambda t=t: f"{name}, frame {t}") for t, rle in enumerate(segmentations)]  # type: ignore[misc]
    pixels = np.array([area for _, area in pairs], dtype=np.float64)
    areas = entry["areas"] if "areas" in entry and "score" not in fields else pixels.tolist()
    return Track(identity, tuple(mask for mask, _ in pairs), pixels, _mean_area(areas), **fields)


def parse_truth(truth: Mapping[str, Any]) -> dict[tuple[int, int], list[Track]]:
    """The true tracks of every (video, category) that is listed, in file order."""
    videos = {video["id"] for video in truth["videos"]}
    categories = {category["id"] for category in truth["categories"]}
    tracks: dict[tuple[int, int], list[Track]] = defaultdict(list)
    for entry in truth["annotations"] or ():
        if entry["video_id"] not in videos or entry["category_id"] not in categories:
            continue
        track = _parse_track(
            entry,
            entry["id"],
            f"annotation {entry['id']}",
            crowd=bool(entry.get("iscrowd", 0)),
            occlusion=occlusion_score(entry.get("occlusion") or ()),
        )
        tracks[entry["video_id"], entry["category_id"]].append(track)
    return tracks


def _check_result(entry: Any, index: int, videos: set[int]) -> float:
    """The entry's score, once the entry is known to be sound but for its masks."""
    if not isinstance(entry, Mapping):
        raise UserError(f"results entry {index}: expected an object, got {type(entry).__name__}")
    missing = [key for key in ("video_id", "category_id", "score", "segmentations") if key not in entry]
    if missing:
        raise UserError(f"results entry {index}: no key `{missing[0]}`")
    if entry["video_id"] not in videos:
        raise UserError(f"results entry {index}: video {entry['video_id']} is not in the truth")
    value = entry["score"]
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise UserError(f"results entry {index}: score {value!r} is not a number")
    return float(value)


def parse_results(
    results: Sequence[Mapping[str, Any]], truth: Mapping[str, Any]
) -> dict[tuple[int, int], list[Track]]:
    """The best 100 predictions of every video and category, best first; equal scores keep file order."""
    if not isinstance(results, list):
        raise UserError(f"results: expected a list of predicted tracks, got {type(results).__name__}")
    videos = {video["id"] for video in truth["videos"]}
    categories = {category["id"] for category in truth["categories"]}
    groups: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for index, entry in enumerate(results):
        value = _check_result(entry, index, videos)
        if entry["category_id"] in categories:
            groups[entry["video_id"], entry["category_id"]].append((value, index))
    tracks = {}
    for key, group in groups.items():
        best = sorted(group, key=lambda pair: -pair[0])[:MOST_TRACKS]
        tracks[key] = [
            _parse_track(results[i], i, f"results entry {i} (video {key[0]})", score=value)
            for value, i in best
        ]
    return tracks
