"""Segment ids straight from the rows of a PNG, which takes half the time of a picture in between.

Panoptic maps are wide areas of one colour: most bytes of their filtered rows are 0, which means "as foreseen".
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..results.segment_ids import Ids, read_ids
from .kernels import buffer, compiled

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 6: 4}  # by colour type: RGB, RGBA
MOST_PIXELS = 1 << 28  # Pillow, too, refuses more


def read_map(path: Path) -> Ids:
    """(H, W) int32 segment ids of a panoptic PNG; of RGB with alpha, alpha is left out.

    Raises:
        UserError: the file is missing, damaged, or has no colours of 8 bits.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return read_ids(path)  # which says what is wrong
    width, height, depth, colour, *rest = _header(data)
    if depth != 8 or colour not in CHANNELS or any(rest) or not 0 < width * height <= MOST_PIXELS:
        return read_ids(path)  # of another kind, or no PNG: Pillow knows
    try:
        rows = _rows(data, height, 1 + width * CHANNELS[colour])
    except (ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file.") from error
    ids = np.empty((height, width), dtype=np.int32)
    if not _unfilter(buffer(rows), CHANNELS[colour], ids):
        raise UserError(f"{path}: not a readable image (a row's filter is none). Replace the file.")
    return ids


def _header(data: bytes) -> tuple[int, ...]:
    """Width, height, bit depth, colour type, compression, filter and interlace method; zeros if it is no PNG."""
    if len(data) < 29 or not data.startswith(SIGNATURE) or data[12:16] != b"IHDR":
        return (0,) * 7
    return struct.unpack(">IIBBBBB", data[16:29])


def _rows(data: bytes, height: int, stride: int) -> bytes:
    """The filtered rows, each chunk's checksum looked at."""
    at, packed, kind = len(SIGNATURE), [], b""
    view = memoryview(data)
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        (expected,) = struct.unpack_from(">I", data, at + 8 + size)
        if zlib.crc32(view[at + 4 : at + 8 + size]) != expected:
            raise ValueError("a checksum is wrong")
        if kind == b"IDAT":
            packed.append(view[at + 8 : at + 8 + size])
        at += 12 + size
    decoder = zlib.decompressobj()
    rows = decoder.decompress(b"".join(packed), height * stride + 1)
    if len(rows) != height * stride:
        raise ValueError(f"its rows are not those of {height} lines")
    return rows


@compiled
def _unfilter(rows: NDArray[Any], channels: int, ids: NDArray[Any]) -> bool:
    """Fills (H, W) ids from filtered rows; False for a filter that there is not."""
    height, width = ids.shape
    stride = width * channels
    line, above = np.zeros(stride, dtype=np.uint8), np.zeros(stride, dtype=np.uint8)
    for y in range(height):
        raw = rows[y * (stride + 1) + 1 : (y + 1) * (stride + 1)]
        kind = rows[y * (stride + 1)]
        if kind > 4:
            return False
        if kind == 0:
            line[:] = raw
        elif kind == 2:
            for i in range(stride):
                line[i] = raw[i] + above[i]
        else:
            _from_the_left(raw, above, kind, channels, line)
        for x in range(width):
            i = x * channels
            ids[y, x] = line[i] | np.int32(line[i + 1]) << 8 | np.int32(line[i + 2]) << 16
        line, above = above, line
    return True


@compiled
def _from_the_left(
    raw: NDArray[Any], above: NDArray[Any], kind: int, channels: int, line: NDArray[Any]
) -> None:
    """A row whose bytes were foreseen from the pixel to their left: filters 1 (left), 3 (mean), 4 (Paeth)."""
    for c in range(channels):
        left = corner = 0
        for i in range(c, len(raw), channels):
            up = np.int64(above[i])
            if kind == 1:
                foreseen = left
            elif kind == 3:
                foreseen = (left + up) >> 1
            elif left == corner:
                foreseen = up  # as nearly always within an area
            else:
                by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
                foreseen = up if by_up <= by_corner else corner
                if by_left <= by_up and by_left <= by_corner:
                    foreseen = left
            left, corner = (np.int64(raw[i]) + foreseen) & 255, up
            line[i] = left
