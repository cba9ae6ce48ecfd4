"""Outlines of masks as short byte strings, from which the page draws the masks.

An outline is a list of rings.  A ring is a simplified contour in integer grid units; holes are rings of their own and
are filled by the even-odd rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Ints = NDArray[np.int64]

#: Grid units per cell.  A cell is `cell_size` pixels on a side.
UNITS = 2
_MIN_TOLERANCE = 0.4  # cells by which a simplified contour may deviate at first
_GRID = 320  # cells of the longer side of a small frame
_MAX_CELL = 4  # pixels on a side: outlines have at least a quarter of the resolution


def cell_size(size: tuple[int, int]) -> int:
    """Pixels on a side of a grid cell: 4, or fewer if the (height, width) of the frame is small."""
    return max(1, min(_MAX_CELL, max(size) // _GRID))


def outline_bytes(rle: Mapping[str, Any], cell: int, limit: int) -> bytes:
    """Encodes the outline of one mask.

    Args:
        rle: compressed COCO RLE.
        cell: `cell_size` of the frame.
        limit: maximal number of bytes; contours are simplified, and small ones are dropped, until they fit.

    Raises:
        ValueError: if the runs of the mask cover more pixels than its size.
    """
    contours = _contours(rle, cell)
    tolerance = _MIN_TOLERANCE
    while contours:
        contours = [_simplify(contour, tolerance) for contour in contours]
        rings = [np.rint(contour * UNITS).astype(np.int64) for contour in contours if len(contour) > 2]
        code = encode_rings(rings)
        if len(code) <= limit:
            return code
        tolerance *= 1.5
        if tolerance > 4:
            contours, tolerance = contours[:-1], 2.0
    return encode_rings([])


def _contours(rle: Mapping[str, Any], cell: int) -> list[NDArray[np.float64]]:
    """Contours of a mask in cells, (n, 2) as x, y without the repeated last point; the largest area first."""
    mask = coco_mask.decode(rle)
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(rle))
    if width == 0 or height == 0:
        return []
    # The box grows to whole cells; each cell holds the part of its pixels that belongs to the mask.
    x, y = left // cell, top // cell
    columns, rows = -(-(left + width) // cell) - x, -(-(top + height) // cell) - y
    pixels = mask[y * cell : (y + rows) * cell, x * cell : (x + columns) * cell]
    padded = np.zeros((rows * cell, columns * cell), np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels == 1
    part = padded.reshape(rows, cell, columns, cell).mean((1, 3), dtype=np.float32)
    lines = contour_generator(z=np.pad(part, 1)).lines(0.5)
    rings = [np.asarray(line[:-1], np.float64) + (x - 0.5, y - 0.5) for line in lines if len(line) > 3]
    return sorted(rings, key=lambda ring: -abs(_area(ring)))


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _simplify(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Douglas-Peucker: the points of a closed contour without those nearer than `tolerance` to the result."""
    far = int(np.square(ring - ring[0]).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept, spans = {0, far}, [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        start, direction = closed[first], closed[last] - closed[first]
        across = np.array([direction[1], -direction[0]]) / max(math.hypot(*direction), 1e-9)
        distances = np.abs((closed[first + 1 : last] - start) @ across)
        index = int(distances.argmax())
        if distances[index] > tolerance:
            middle = first + 1 + index
            kept.add(middle)
            spans += [(first, middle), (middle, last)]
    return ring[sorted(kept)]


def encode_rings(rings: Sequence[Ints]) -> bytes:
    """Number of rings, then per ring: number of points, first point, and steps from point to point."""
    code = bytearray(varints([len(rings)]))
    previous = np.zeros((1, 2), np.int64)
    for ring in rings:
        steps = np.diff(ring, axis=0, prepend=previous)
        code += varints([len(ring)]) + varints(zigzag(steps.ravel()))
        previous = ring[-1:]
    return bytes(code)


def zigzag(values: Ints) -> Ints:
    """Signed integers as unsigned ones, small magnitudes first: 0, -1, 1, -2, ..."""
    return (values << 1) ^ (values >> 63)


def varints(values: Iterable[int] | Ints) -> bytes:
    """Unsigned integers in LEB128: 7 bits per byte, low bits first, the high bit marks that a byte follows."""
    array = np.asarray(values, np.int64)
    if not len(array) or array.max() < 128:
        return array.astype(np.uint8).tobytes()
    code = bytearray()
    for value in array.tolist():
        while value > 127:
            code.append(value & 127 | 128)
            value >>= 7
        code.append(value)
    return bytes(code)
