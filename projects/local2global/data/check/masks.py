"""Checks what an annotation states about its masks: area, box, polygon range, `iscrowd` and id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as rle

from ..readers.entries import Problems, is_crowd, is_int, shown

_TINY = 64
"""Pixels below which rounding alone may put an area or a box far off."""
_SLACK = 1.5
"""Tolerance of a box edge in pixels: some tools round, some write width - 1."""


def check_backslashes(names: Iterable[str], problems: Problems) -> None:
    """Reports file names with backslashes, as annotation tools on Windows write them."""
    name = next((name for name in names if "\\" in name), None)
    if name is not None:
        problem = f"file names contain backslashes, e.g. {shown(name)}"
        problems.warn("backslash", "", problem, "Write / instead; the readers here accept both")


def check_crowd(annotation: Mapping[str, Any], where: str, problems: Problems) -> bool:
    """Whether an annotation is an ignore region; reports a missing or invalid `iscrowd`."""
    if "iscrowd" not in annotation:
        fix = 'Add "iscrowd": 0, or 1 for an ignore region'
        problems.error("no-iscrowd", where, "no iscrowd, which the official scorers require", fix)
    return bool(is_crowd(annotation, where, problems))


def check_id(entry: Mapping[str, Any], where: str, problems: Problems) -> None:
    """Reports an annotation id of 0 or below."""
    identity = entry.get("id")
    if is_int(identity) and identity == 0:
        problem = "id 0, which the official scorer never counts as found"
        problems.error("id-zero", where, problem, "Number annotations from 1 on")
    elif is_int(identity) and identity < 0:
        problems.error("id-negative", where, "a negative id", "Number annotations from 1 on")


def check_range(segmentation: Any, size: tuple[int, int], where: str, problems: Problems) -> None:
    """Reports polygons, already validated, that reach more than a pixel beyond the frame."""
    if not isinstance(segmentation, list):
        return
    left, top, right, bottom = _polygon_edges(segmentation)
    beyond = max(-left, -top, right - size[1], bottom - size[0])
    if beyond > 1:
        problem = f"a polygon reaches {beyond:.0f} pixels beyond the frame"
        problems.warn("outside-frame", where, problem, "Clip it to the frame")


def check_area(area: int, stated: Any, exact: bool, where: str, problems: Problems) -> None:
    """Reports a stated area that is not the mask's: an error beyond a factor of two.

    Args:
        area: the number of pixels in the mask.
        stated: the file's value.
        exact: whether the stated area counts pixels; that of a polygon is the area of a plane figure.
        where: the entry.
        problems: where problems are reported.
    """
    fix = f"Make it {area}, the number of pixels in the mask"
    if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not math.isfinite(stated):
        problems.error("area", where, f"area {shown(stated)} is not a number", fix)
        return
    if abs(stated - area) <= (1.0 if exact else 8 + 0.25 * area):
        return
    low, high = sorted((float(stated), float(area)))
    report = problems.error if high > _TINY and high > 2 * low else problems.warn
    report("area", where, f"area {stated:g}, but the mask has {area} pixels", fix)


def check_box(
    counts: str, size: tuple[int, int], segmentation: Any, stated: Any, where: str, problems: Problems
) -> None:
    """Reports a stated box (x, y, w, h) that is not the mask's: an error if their IoU is below 0.5.

    Args:
        counts: the mask's compressed counts.
        size: (height, width) of the frame.
        segmentation: the file's mask; the box of polygons is that of their points, which may be too close together to
            contain a pixel.
        stated: the file's value.
        where: the entry.
        problems: where problems are reported.
    """
    is_polygon = isinstance(segmentation, list)
    left, top, right, bottom = own = _polygon_edges(segmentation) if is_polygon else _mask_edges(counts, size)
    box = [round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)]
    fix = f"Make it {box}, the box of the mask"
    if not is_box(stated):
        problems.error("bbox", where, f"bbox {shown(stated)} is not [x, y, width, height]", fix)
        return
    edges = [stated[0], stated[1], stated[0] + stated[2], stated[1] + stated[3]]
    if max(abs(a - b) for a, b in zip(edges, own, strict=True)) <= _SLACK:
        return
    gross = max(_area(edges), _area(own)) > _TINY and _iou(edges, own) < 0.5
    report = problems.error if gross else problems.warn
    report("bbox", where, f"bbox {[round(x, 1) for x in stated]}, but the mask's is {box}", fix)


def _mask_edges(counts: str, size: tuple[int, int]) -> list[float]:
    x, y, width, height = (float(n) for n in rle.toBbox({"size": list(size), "counts": counts}))
    return [x, y, x + width, y + height]


def _polygon_edges(polygons: list[list[float]]) -> list[float]:
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
