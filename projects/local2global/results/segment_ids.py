"""Panoptic maps as PNG files: a segment's id is R + 256 G + 65536 B, 0 is void (COCO panoptic, VIPSeg)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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


def ids_to_colours(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) segment ids in [0, 2^24) as (H, W, 3) RGB."""
    plain = np.ascontiguousarray(ids, "<i4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(plain[..., :3])


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
        UserError: if the file is missing, damaged, or has no colours of 8 bits.
    """
    try:
        with Image.open(path) as image:
            # Pillow halves a PNG's 16-bit colours in silence, and calls them RGB.
            deep = image.format == "PNG" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            if image.mode not in ("RGB", "RGBA") or deep:
                kind = "of 16-bit colours" if deep else f"of mode {image.mode}"
                problem = f"a panoptic PNG holds ids as RGB of 8 bits, this image is {kind}"
                raise UserError(f"{path}: {problem}. Convert it, e.g. with `l2g data convert vipseg`.")
            picture = image.convert("RGB")
            # Four bytes a pixel is how the decoder holds it: a copy, and no arithmetic.
            ids = np.frombuffer(picture.tobytes("raw", "RGBX"), "<i4").reshape(picture.size[::-1])
    except FileNotFoundError:
        raise UserError(f"{path}: no such panoptic PNG.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file.") from error
    return np.asarray(ids & np.int32(0xFFFFFF))


def write_ids(ids: NDArray[Any], path: Path) -> None:
    """Writes (H, W) segment ids below 2^24 as a panoptic PNG, put in place when it is whole."""
    partial = path.with_name(path.name + ".tmp")
    try:
        Image.fromarray(ids_to_colours(ids)).save(partial, format="PNG", compress_level=1)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
