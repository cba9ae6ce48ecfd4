"""Masks as text: any COCO segmentation to compressed run lengths, checked once when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """An (H, W) bool mask as compressed COCO RLE whose counts are a str, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _runs(counts: str) -> NDArray[np.int64]:
    """The run lengths of a compressed RLE: 5 bits a character, each relative to the last but one.

    pycocotools trusts what it is given, and runs that stop short of the frame decode to unset memory: so they
    are read here once.
    """
    digits = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 0x20:
        raise ValueError("malformed RLE")
    ends = np.flatnonzero(digits & 0x20 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("malformed RLE")
    numbers = np.add.reduceat((digits & 0x1F) << 5 * place, starts)
    numbers -= np.where(digits[ends] & 0x10, 1 << 5 * (ends - starts + 1), 0)
    # The first three numbers stand for themselves, so odd runs add up from 1 and even ones from 2.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def compress(segmentation: Any, size: tuple[int, int]) -> tuple[str, int]:
    """Counts and area of a compressed RLE, an uncompressed one, or a list of polygons.

    Raises:
        ValueError: for anything that is not a mask of `size`, in words.
    """
    height, width = size
    if isinstance(segmentation, Mapping):
        stated, counts = segmentation.get("size"), segmentation.get("counts")
        if stated is None or list(stated) != [height, width]:
            raise ValueError(f"a mask of size {stated} (height, width) in a video of {[height, width]}")
        if isinstance(counts, list):
            if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != height * width:
                raise ValueError(f"the runs of an uncompressed RLE do not add up to {height * width} pixels")
            counts = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    elif isinstance(segmentation, list) and segmentation and all(_is_polygon(p) for p in segmentation):
        counts = rle.merge(rle.frPyObjects(segmentation, height, width))["counts"]
    else:
        raise ValueError("neither an RLE nor a list of polygons of three points or more")
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    if not isinstance(text, str):
        raise ValueError("an RLE without counts")
    runs = _runs(text)
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"the runs of an RLE do not add up to {height * width} pixels")
    return text, int(runs[1::2].sum())


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0


class Grid:
    """Some rows and columns of a frame, at which masks are read without decoding the rest.

    A mask's runs, counted in pixels of the frame, become runs counted in points of the grid; only those are decoded.

    Args:
        size: (height, width) of the frame.
        rows: (h,) rising positions in [0, height); a row may occur more than once.
        columns: (w,) positions in [0, width) in any order.
    """

    def __init__(self, size: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        self.height, self.width = size
        self.rows, self.columns = rows, columns
        # Runs go down the columns from left to right: equal columns are read once, and put in order at the end.
        kept, self._order = np.unique(columns, return_inverse=True)
        self._ordered = len(kept) == len(columns) and bool((self._order[1:] > self._order[:-1]).all())
        self._shape = (len(kept), len(rows))
        self._rows_above = np.searchsorted(rows, np.arange(self.height + 1))
        self._columns_left = np.searchsorted(kept, np.arange(self.width + 2))

    def read(self, counts: str) -> Tensor:
        """(h, w) bool of a mask's compressed counts, which `compress` has checked."""
        ends = np.cumsum(_runs(counts)[:-1])
        x, y = np.divmod(ends, self.height)
        left = self._columns_left[x]
        inside = self._columns_left[x + 1] - left
        ranks = left * self._shape[1] + inside * self._rows_above[y]
        lengths = np.diff(ranks, prepend=0, append=self._shape[0] * self._shape[1])
        values = np.arange(len(lengths)) % 2 == 1
        points = np.repeat(values, lengths).reshape(self._shape)
        return torch.from_numpy(points if self._ordered else points[self._order]).T
