"""Panoptic maps as PNG files: a segment's id is R + 256 G + 65536 B, 0 is void (COCO panoptic, VIPSeg)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

Ids = NDArray[np.int32]

_SPREAD = 0x9E3779B1
"""Odd, so that multiplying by it permutes the 24-bit numbers; neighbours become colours that eyes tell apart."""


def segment_id(number: int) -> int:
    """A segment id for a small number: another for every number in [1, 2^24), never 0, bright to look at."""
    return (number * _SPREAD) % (1 << 24)


def ids_to_colours(ids: Ids) -> NDArray[np.uint8]:
    """(H, W) segment ids in [0, 2^24) as (H, W, 3) RGB."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def colours_to_ids(colours: NDArray[np.uint8]) -> Ids:
    """(H, W, 3) RGB as (H, W) segment ids."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.asarray(red | green << 8 | blue << 16)


def count_ids(ids: Ids) -> dict[int, int]:
    """Pixels of every id that a map holds, by id, void included.

    Runs of equal neighbours are counted, not pixels: a map has few.
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    values, rows = np.unique(flat[starts], return_inverse=True)
    areas = np.bincount(rows, weights=lengths).astype(np.int64)
    return dict(zip(values.tolist(), areas.tolist(), strict=True))


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] of the pixels of an (H, W) mask that has any."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def read_ids(path: Path) -> Ids:
    """(H, W) segment ids of a panoptic PNG.

    Raises:
        UserError: if the file is missing, damaged, or no RGB image.
    """
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                problem = f"a panoptic PNG holds ids as RGB, this image is of mode {image.mode}"
                raise UserError(f"{path}: {problem}. Convert it, e.g. with `l2g data convert vipseg`.")
            return colours_to_ids(np.asarray(image))
    except FileNotFoundError:
        raise UserError(f"{path}: no such panoptic PNG.") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file.") from error


def write_ids(ids: Ids, path: Path) -> None:
    """Writes (H, W) segment ids as a panoptic PNG."""
    Image.fromarray(ids_to_colours(ids)).save(path, format="PNG", compress_level=1)
