"""COCO run-length strings and polygons, checked before pycocotools reads them without any check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: The largest coordinate of a polygon, in longer sides of the frame.
MAX_DISTANCE = 10


class RunsError(ValueError):
    """A malformed mask at position `index` of a list."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def decode_counts(counts: Sequence[str | bytes]) -> list[Ints]:
    """Run lengths of compressed COCO counts, background first.

    A run is written in digits of five bits, lowest first; bit 32 of a character marks a further digit, bit 16 of the
    last digit is the sign.  From the fourth on, a run is stored as the difference to the run before the previous one.

    pycocotools checks no string: runs that stop short of the frame decode to uninitialised memory.

    Raises:
        RunsError: a string is not a COCO run-length string, or a run is negative.
    """
    if not counts:
        return []
    texts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in counts]
    stops = np.cumsum([len(text) for text in texts])
    digits = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)  # characters below 48 wrap to above 63
    last = np.flatnonzero(digits < 32)  # the last digit of every run
    width = np.diff(last, prepend=-1)
    sound = np.array([len(text) > 0 for text in texts])
    if sound.all():
        sound = digits[stops - 1] < 32
    if digits.max(initial=0) > 63:
        sound[np.searchsorted(stops, np.flatnonzero(digits > 63), side="right")] = False
    if not sound.all():
        raise RunsError(int(sound.argmin()), "not a run-length string")
    values = digits & 31
    runs = values[last].astype(np.int64)
    runs -= (runs & 16) << 1  # the sign
    long = width > np.where(runs < 0, 6, 7)  # pycocotools shifts 32-bit numbers: it would read another run
    if long.any():
        n = int(np.searchsorted(stops, last[long.argmax()], side="right"))
        raise RunsError(n, "a run of more than 31 bits")
    for k in range(1, int(width.max())):
        longer = np.flatnonzero(width > k)
        runs[longer] = (runs[longer] << 5) | values[last[longer] - k]
    masks = np.split(runs, np.searchsorted(last, stops[:-1]))
    for mask in masks:
        mask[1::2], mask[2::2] = mask[1::2].cumsum(), mask[2::2].cumsum()
    if runs.min() < 0:
        raise RunsError(next(n for n, mask in enumerate(masks) if mask.min() < 0), "a run is negative")
    return masks


def parse_polygon(polygon: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """The validated coordinates x, y, x, y, ... of a polygon in a frame of (height, width).

    Raises:
        ValueError: with the problem in words.
    """
    try:
        points = np.array(polygon)
    except ValueError:
        points = np.array([""])
    if not isinstance(polygon, list) or points.ndim != 1 or points.dtype.kind not in "iuf":
        raise ValueError("a polygon must be a list of numbers x, y, x, y, ...")
    if len(points) < 6 or len(points) % 2:
        raise ValueError(f"a polygon of {len(points)} coordinates: three points or more are needed")
    far = float(np.abs(points).max())
    if not math.isfinite(far):
        raise ValueError("a polygon with a coordinate that is not finite")
    if far > MAX_DISTANCE * max(size):
        # The C code of pycocotools visits every pixel of an edge, and overflows beyond 2^31 / 5.
        raise ValueError(f"a polygon with coordinate {far:g} in a frame of {size[0]}x{size[1]}")
    return points.astype(np.float64)
