"""One mask of an annotation: well-formed, of the right size, and agreeing with its area and box."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as rle

from ..readers.rle import compress
from .findings import Notes

_TINY = 64
"""Pixels below which an area or a box may be far off by its rounding alone."""
_SLACK = 1.5
"""Pixels that an edge of a box may be off: some round, some write width - 1."""


@dataclass(frozen=True)
class Mask:
    """A mask that could be read.

    Attributes:
        counts: its compressed runs.
        area: its pixels.
    """

    counts: str
    area: int


def read_mask(segmentation: Any, size: tuple[int, int], where: str, notes: Notes) -> Mask | None:
    """A segmentation as runs, or None, noted."""
    if isinstance(segmentation, Mapping) and segmentation.get("size") != list(size):
        problem = f"a mask of size {segmentation.get('size')} (height, width) on a frame of {list(size)}"
        notes.error("mask-size", where, problem, "Redraw the mask at the frame's size, or correct the size")
        return None
    try:
        _check_numbers(segmentation)
        counts, area = compress(segmentation, size)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        notes.error("malformed-mask", where, f"{error}", "Encode the mask again, as COCO RLE or polygons")
        return None
    _check_inside(segmentation, size, where, notes)
    return Mask(counts, area)


def _check_numbers(segmentation: Any) -> None:
    """Raises ValueError for polygons whose coordinates are no finite numbers, which C code would trust."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list):
                raise ValueError("a polygon that is no list of numbers")
            for number in polygon:
                if (
                    isinstance(number, bool)
                    or not isinstance(number, (int, float))
                    or not math.isfinite(number)
                ):
                    raise ValueError(f"a polygon with {number!r} among its coordinates")


def _check_inside(segmentation: Any, size: tuple[int, int], where: str, notes: Notes) -> None:
    if not isinstance(segmentation, list):
        return
    height, width = size
    points = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in segmentation]
    everything = np.concatenate(points)
    beyond = max(-everything.min(), everything[:, 0].max() - width, everything[:, 1].max() - height)
    if beyond > 1:
        problem = f"a polygon reaches {beyond:.0f} pixels beyond the frame"
        notes.warn("outside-frame", where, problem, "Clip it to the frame")


def check_area(mask: Mask, stated: Any, exact: bool, where: str, notes: Notes) -> None:
    """Notes a stated area that is not the mask's: an error beyond a factor of two.

    Args:
        mask: the mask.
        stated: what the file says.
        exact: whether the area counts the mask's pixels; that of polygons is a plane figure's.
        where: the entry.
        notes: where it goes.
    """
    fix = f"Make it {mask.area}, the mask's number of pixels"
    if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not math.isfinite(stated):
        notes.error("area", where, f"area {stated!r} is no number", fix)
        return
    slack = 1.0 if exact else 8 + 0.25 * mask.area
    apart = abs(stated - mask.area)
    if apart <= slack:
        return
    low, high = sorted((float(stated), float(mask.area)))
    note = notes.error if high > _TINY and high > 2 * low else notes.warn
    note("area", where, f"area {stated:g}, but the mask has {mask.area} pixels", fix)


def check_box(
    mask: Mask, size: tuple[int, int], segmentation: Any, stated: Any, where: str, notes: Notes
) -> None:
    """Notes a stated box (x, y, w, h) that is not the mask's: an error if they share less than half of their union.

    Args:
        mask: the mask.
        size: (height, width) of the frame.
        segmentation: what the mask was read from; the box of polygons is that of their points, which may be too
            close together to hold a pixel.
        stated: what the file says.
        where: the entry.
        notes: where it goes.
    """
    polygons = segmentation if isinstance(segmentation, list) else None
    left, top, right, bottom = own = _points_edges(polygons) if polygons else _pixel_edges(mask, size)
    box = [round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)]
    fix = f"Make it {box}, the mask's own"
    if not is_box(stated):
        notes.error("bbox", where, f"bbox {stated!r} is not [x, y, width, height]", fix)
        return
    edges = [stated[0], stated[1], stated[0] + stated[2], stated[1] + stated[3]]
    if max(abs(a - b) for a, b in zip(edges, own, strict=True)) <= _SLACK:
        return
    gross = max(_area(edges), _area(own)) > _TINY and _iou(edges, own) < 0.5
    note = notes.error if gross else notes.warn
    note("bbox", where, f"bbox {[round(x, 1) for x in stated]}, but the mask's is {box}", fix)


def _pixel_edges(mask: Mask, size: tuple[int, int]) -> list[float]:
    x, y, width, height = (float(n) for n in rle.toBbox({"size": list(size), "counts": mask.counts}))
    return [x, y, x + width, y + height]


def _points_edges(polygons: list[list[float]]) -> list[float]:
    points = np.concatenate([np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in polygons])
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Whether a value is [x, y, w, h]."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in value)
    )


def _area(edges: list[float]) -> float:
    return max(edges[2] - edges[0], 0) * max(edges[3] - edges[1], 0)


def _iou(a: list[float], b: list[float]) -> float:
    shared = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    union = _area(a) + _area(b) - _area(shared)
    return _area(shared) / union if union > 0 else 0.0
