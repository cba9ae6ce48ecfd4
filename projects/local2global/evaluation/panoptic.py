"""One frame of panoptic truth and prediction: the listed segments of both and their common pixels.

A panoptic map gives every pixel the id of a segment; 0 is void.  A list per map gives the category of each id.  All
scores follow from the joint histogram of true and predicted ids, so each map is read once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..results.segment_ids import count_ids
from .oddities import Oddities

Ints = NDArray[np.int64]

VOID = 0
MAX_ID = 1 << 24  # an id is R + 256 G + 65536 B of a PNG


@dataclass(frozen=True)
class Segment:
    """An entry of a frame's list.

    Attributes:
        id: the value of its pixels.
        category: position of its category in the class list.
        area: pixels, as listed.
        crowd: whether it is a crowd.
    """

    id: int
    category: int
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class FrameOverlap:
    """One frame of truth and prediction.

    Attributes:
        truth: the listed true segments.
        prediction: the listed predicted segments.
        pixels: common pixels by (true id, predicted id), for all pairs that occur.
    """

    truth: Sequence[Segment]
    prediction: Sequence[Segment]
    pixels: Mapping[tuple[int, int], int]


def joint_histogram(truth: NDArray[Any], prediction: NDArray[Any]) -> dict[tuple[int, int], int]:
    """Number of pixels of every pair of ids.

    Args:
        truth: (H, W) ids in [0, 2^32).
        prediction: (H, W) ids in [0, 2^32).

    Returns:
        pixels by (true id, predicted id), by rising ids.
    """
    return {(key >> 32, key & 0xFFFFFFFF): n for key, n in count_ids(truth, prediction).items()}


def overlap_frame(
    place: str,
    truth: NDArray[Any],
    prediction: NDArray[Any],
    true_segments: Sequence[Segment],
    predicted_segments: Sequence[Segment],
    oddities: Oddities | None = None,
) -> FrameOverlap:
    """Compares one frame's maps, (H, W) ids each; unusual entries of the truth are noted in `oddities`.

    `place` is the video and the frame, for messages.

    Raises:
        UserError: the maps differ in size or have ids out of range; a predicted id is painted and not listed, or listed
            and not painted.
    """
    if truth.ndim != 2 or truth.shape != prediction.shape:
        sizes = " and ".join("x".join(map(str, side.shape)) for side in (truth, prediction))
        raise UserError(
            f"{place}: truth and prediction are {sizes} pixels; write predictions at the truth's size"
        )
    for side, ids in (("truth", truth), ("prediction", prediction)):
        if ids.size and (ids.min() < 0 or ids.max() >= MAX_ID):
            raise UserError(f"{place}: the {side} map holds an id outside 0 to {MAX_ID - 1}")
    pixels = joint_histogram(truth, prediction)
    painted, listed = {p for _, p in pixels}, {segment.id for segment in predicted_segments}
    for identity in sorted(painted - listed - {VOID}):
        raise UserError(f"{place}: predicted id {identity} is painted but not listed in segments_info")
    for identity in sorted(listed - painted):
        raise UserError(f"{place}: predicted id {identity} is listed in segments_info but has no pixel")
    if oddities is not None:
        _note_truth(f"truth, {place}", pixels, true_segments, oddities)
    return FrameOverlap(true_segments, predicted_segments, pixels)


def _note_truth(
    place: str, pixels: Mapping[tuple[int, int], int], segments: Sequence[Segment], oddities: Oddities
) -> None:
    """Notes what is unusual about a frame of the truth."""
    areas: Counter[int] = Counter()
    for (identity, _), count in pixels.items():
        areas[identity] += count
    listed = {segment.id: segment for segment in segments}
    if len(listed) < len(segments):
        oddities.note("an id listed twice on a frame", place)
    for identity in sorted(areas.keys() - listed.keys() - {VOID}):
        oddities.note("an id painted but not listed", f"{place}, id {identity}")
    for identity, segment in listed.items():
        if identity == VOID:
            oddities.note("id 0, which is void, is listed", place)
        elif identity not in areas:
            oddities.note("an id listed without a pixel", f"{place}, id {identity}")
        elif areas[identity] != segment.area:
            oddities.note("an area that is not the painted one", f"{place}, id {identity}")


def parse_segments(entries: Any, positions: Mapping[int, int], place: str, areas: bool) -> list[Segment]:
    """Parses a frame's `segments_info`; `place` is the side, the video and the frame, for messages.

    Areas are read if `areas` is set: true areas are the listed ones, predicted areas the painted ones.

    Raises:
        UserError: an entry without id, category or area, or of an unknown category.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UserError(f"{place}: expected a list `segments_info`")
    segments = []
    for entry in entries:
        try:
            identity, category = index(entry["id"]), index(entry["category_id"])
            area, crowd = float(entry["area"]) if areas else 0.0, entry.get("iscrowd", 0) == 1
            if not math.isfinite(area):
                raise ValueError("not finite")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            keys = "id, category_id and area" if areas else "id and category_id"
            raise UserError(
                f"{place}: an entry of segments_info needs {keys}, numbers: {entry!r:.80}"
            ) from None
        if category not in positions:
            raise UserError(f"{place}: id {identity} has category {category}, which the truth does not list")
        segments.append(Segment(identity, positions[category], area, crowd))
    return segments
