"""Masks as COCO run-length encodings (RLE) and polygons: validated once, decoded when they are used."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from ...results.rle import decode_counts, parse_polygon

#: A validated mask: compressed RLE counts, or polygons as the bytes of their float64 coordinates.
Outline = str | tuple[bytes, ...]


def encode_mask(mask: Tensor | NDArray[Any]) -> dict[str, Any]:
    """An (H, W) bool mask as compressed COCO RLE whose counts are a str, ready for JSON."""
    return _plain(rle.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8)))


def merge_masks(masks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The union of RLEs of one size."""
    return _plain(rle.merge(list(masks)))


def _plain(encoded: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def describe_masks(masks: Sequence[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """The `areas` and `bboxes` of a YouTube-VIS annotation: pixels, and (x, y, w, h), None without a mask."""
    return {
        "areas": [None if mask is None else int(rle.area(mask)) for mask in masks],
        "bboxes": [None if mask is None else [float(x) for x in rle.toBbox(mask)] for mask in masks],
    }


def pack_outline(outline: Outline | None) -> bytes:
    """An outline as bytes: counts as text, polygons after a zero and their lengths, nothing for None."""
    if outline is None:
        return b""
    if isinstance(outline, str):
        return outline.encode("ascii")
    return b"\0" + struct.pack(f"<I{len(outline)}I", len(outline), *map(len, outline)) + b"".join(outline)


def unpack_outline(data: bytes) -> Outline | None:
    """The inverse of `pack_outline`."""
    if not data:
        return None
    if data[0]:
        return data.decode("ascii")
    (number,) = struct.unpack_from("<I", data, 1)
    lengths = struct.unpack_from(f"<{number}I", data, 5)
    ends = [5 + 4 * number, *lengths]
    for i in range(number):
        ends[i + 1] += ends[i]
    return tuple(data[start:end] for start, end in pairwise(ends))


def parse_outline(segmentation: Any, size: tuple[int, int]) -> Outline:
    """A validated `segmentation` of a JSON file: compressed RLE, uncompressed RLE, or a list of polygons.

    Polygons are not rasterised: that would take a minute for the 860,000 polygons of COCO.

    Args:
        segmentation: the JSON value.
        size: (height, width) of the frame.

    Raises:
        ValueError: with the problem in words.
    """
    if isinstance(segmentation, Mapping):
        return _parse_rle(segmentation, size)
    if isinstance(segmentation, list) and segmentation:
        return tuple(parse_polygon(polygon, size).tobytes() for polygon in segmentation)
    raise ValueError("neither an RLE nor a list of polygons")


def _parse_rle(segmentation: Mapping[str, Any], size: tuple[int, int]) -> str:
    height, width = size
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"a mask of size {segmentation.get('size')} (height, width), not {[height, width]}")
    if isinstance(counts, list):
        if set(map(type, counts)) - {int} or min(counts, default=0) < 0:
            raise ValueError("an uncompressed RLE whose run lengths are not all integers of 0 or more")
        if sum(counts) != height * width:
            raise ValueError(f"the runs of an RLE add up to {sum(counts)} pixels, not {height * width}")
        encoded = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return str(encoded["counts"].decode("ascii"))
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    if not isinstance(text, str):
        raise ValueError("an RLE without counts")
    if decode_counts([text])[0].sum() != height * width:
        raise ValueError(f"the runs of an RLE do not add up to {height * width} pixels")
    return text


def sound_areas(counts: Sequence[str], pixels: int) -> list[int] | None:
    """The pixels of each mask, if all compressed counts are certainly sound; None if they must be read one by one.

    Sound counts are well-formed and add up to `pixels`.  All are decoded at once, in a fraction of the time that
    `parse_outline` takes for one after another.  None also for the numbers of seven characters that frames above 2^29
    pixels need.

    Args:
        counts: n counts.
        pixels: height times width of their frames.
    """
    if not counts:
        return []
    try:
        codes = np.frombuffer("".join(counts).encode("ascii"), dtype=np.uint8) - np.uint8(48)
    except UnicodeEncodeError:
        return None
    lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    ends = np.cumsum(lengths)
    continued = codes >= 0x20
    if not lengths.min() or codes.max() > 63 or continued[ends - 1].any():
        return None
    last = np.flatnonzero(~continued)  # the last character of each number
    numbers = ((codes[last].astype(np.int8) ^ 0x10) - 0x10).astype(np.int32)  # the bit 0x10 is the sign
    # The character before the first is the last one, which ends a number.
    long = np.flatnonzero(continued[last - 1])
    places = last[long] - 1
    for _ in range(5):
        numbers[long] = (numbers[long] << 5) + (codes[places] & 0x1F)
        more = continued[places - 1]
        long, places = long[more], places[more] - 1
        if not len(long):
            break
    end = np.searchsorted(last, ends)
    return None if len(long) else _areas(numbers, np.concatenate(([0], end[:-1])), end, pixels)


def _areas(
    numbers: NDArray[np.int32], first: NDArray[np.int64], end: NDArray[np.int64], pixels: int
) -> list[int] | None:
    """The sums of the odd runs of several counts, at [first, end) of their numbers.

    None if a run is negative, or if the runs of some counts do not add up to `pixels`.  The first run of counts is
    absolute; each other run is relative to the run before the last, of the same parity.
    """
    areas = np.zeros(len(first), dtype=np.int64)
    totals = numbers[first].astype(np.int64)
    if totals.min() < 0:
        return None
    numbers[first] = 0
    for parity in (0, 1):
        # The sums of all counts run on, so a run is a sum less the sum before its counts.
        sums = np.concatenate(([0], np.cumsum(numbers[parity::2], dtype=np.int64)))
        begin, stop = (first - parity + 1) >> 1, (end - parity + 1) >> 1
        some = stop > begin
        begin, base = begin[some] + 1, sums[begin[some]]
        if not len(begin):
            continue
        if (np.minimum.reduceat(sums, begin) < base).any():
            return None
        added = np.add.reduceat(sums, begin) - base * (stop[some] + 1 - begin)
        totals[some] += added
        areas[some] += np.where((first[some] & 1) == parity, 0, added)
    return areas.tolist() if (totals == pixels).all() else None


def outline_counts(outline: Outline, size: tuple[int, int]) -> str:
    """Compressed counts of an outline of a frame of (height, width)."""
    if isinstance(outline, str):
        return outline
    polygons = [np.frombuffer(coordinates) for coordinates in outline]
    return str(merge_masks(rle.frPyObjects(polygons, *size))["counts"])


def count_pixels(counts: Sequence[str], size: tuple[int, int]) -> list[int]:
    """The number of pixels in each mask."""
    # One by one: pycocotools fails on lists of more than 255 masks.
    return [int(rle.area({"size": list(size), "counts": text})) for text in counts]


def decode_outlines(outlines: Sequence[Outline | None], size: tuple[int, int]) -> Tensor:
    """(M, H, W) bool masks of M outlines; None is an empty mask."""
    masks = torch.zeros((len(outlines), *size), dtype=torch.bool)
    for mask, outline in zip(masks, outlines, strict=True):
        if outline is not None:
            encoded = {"size": list(size), "counts": outline_counts(outline, size)}
            mask.copy_(torch.from_numpy(rle.decode(encoded)))
    return masks


def sample_outlines(
    outlines: Sequence[Outline | None],
    size: tuple[int, int],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> Tensor:
    """(M, h, w) bool: masks read at some rows and columns of a frame, see `Grid`."""
    grid = Grid(size, rows, columns)
    masks = torch.zeros((len(outlines), len(rows), len(columns)), dtype=torch.bool)
    present = [row for row, outline in enumerate(outlines) if outline is not None]
    counts = [outline_counts(outline, size) for outline in outlines if outline is not None]
    for row, runs in zip(present, decode_counts(counts), strict=True):
        masks[row] = grid.read(runs)
    return masks


class Grid:
    """Rows and columns of a frame at which masks are read without decoding all of their pixels.

    Run lengths in pixels become run lengths in grid points, and only those are decoded.  Eight clips of four 720p
    frames with six objects take 0.36 s of CPU this way, 0.53 s with `pycocotools.mask.decode` (AMD EPYC, one thread).

    Args:
        size: (height, width) of the frame.
        rows: (h,) non-decreasing row indices.
        columns: (w,) column indices in any order.
    """

    def __init__(self, size: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        self.height = size[0]
        # Runs go down the columns from left to right: distinct columns are read in order, then reordered.
        distinct, self._order = np.unique(columns, return_inverse=True)
        self._shape = (len(distinct), len(rows))
        self._rows_above = np.searchsorted(rows, np.arange(size[0] + 1))
        self._columns_left = np.searchsorted(distinct, np.arange(size[1] + 2))

    def read(self, runs: NDArray[np.int64]) -> Tensor:
        """(h, w) bool of a mask's run lengths."""
        x, y = np.divmod(np.cumsum(runs[:-1]), self.height)
        left = self._columns_left[x]
        inside = self._columns_left[x + 1] - left
        ranks = left * self._shape[1] + inside * self._rows_above[y]
        lengths = np.diff(ranks, prepend=0, append=self._shape[0] * self._shape[1])
        points = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(self._shape)
        return torch.from_numpy(points[self._order]).T
