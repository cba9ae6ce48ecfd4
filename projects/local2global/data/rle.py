"""Masks as text: any COCO segmentation to compressed run lengths, checked once when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
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
