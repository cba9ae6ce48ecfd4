"""Panoptic maps as PNG files: a segment's id is R + 256 G + 65536 B, and 0 is void (COCO panoptic, VIPSeg)."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..files import atomic_path
from ..limits import check_pixels

Ids = NDArray[np.int32]

#: Odd, so multiplication by it permutes the 24-bit numbers; consecutive numbers get clearly different colours.
_SPREAD = 0x9E3779B1


def segment_id(number: int) -> int:
    """A segment id with a distinct colour for a number in [1, 2^24): unique, and never 0."""
    return (number * _SPREAD) % (1 << 24)


def ids_to_colours(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) segment ids in [0, 2^24) as (H, W, 3) RGB."""
    plain = np.ascontiguousarray(ids, "<i4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(plain[..., :3])


def count_ids(*maps: NDArray[Any]) -> dict[int, int]:
    """Number of pixels of every id in a map, by increasing id, void included.

    For two maps of equal size, of every pair of ids below 2^32; the first id is in the high bits.
    """
    flat = [ids.ravel() for ids in maps]
    # Segments are wide, so runs of equal pixels along the rows are sorted instead of pixels.
    first = np.zeros(len(flat[0]), np.bool_)
    first[:1] = True
    for ids in flat:
        first[1:] |= ids[1:] != ids[:-1]
    starts = np.flatnonzero(first)
    keys = np.zeros(len(starts), np.uint64)
    for ids in flat:
        keys = keys << np.uint64(32) | ids[starts].astype(np.uint64)
    values, rows = np.unique(keys, return_inverse=True)
    areas = np.bincount(rows, weights=np.diff(starts, append=len(flat[0]))).astype(np.int64)
    return dict(zip(values.tolist(), areas.tolist(), strict=True))


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] in pixels of an (H, W) mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


class Readable(Protocol):
    """A file, in a folder or in a zip file."""

    def read_bytes(self) -> bytes:
        """The content."""


def read_ids(path: Readable) -> Ids:
    """(H, W) segment ids of a panoptic PNG; the checksums of all its chunks are verified.

    Raises:
        UserError: the file is missing, damaged, or not a PNG of RGB or RGBA with 8 bits per channel.
    """
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            check_pixels(*image.size)
            image.verify()  # checksums, which the decoder does not check
        with Image.open(BytesIO(data)) as image:
            # Pillow reads a PNG of 16 bits per channel as RGB with 8 bits, without a warning.
            deep = image.format == "PNG" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
            still = image.format == "PNG" and getattr(image, "n_frames", 1) == 1
            if image.mode not in ("RGB", "RGBA") or deep or not still:
                kind = "of 16-bit colours" if deep else f"of mode {image.mode}"
                kind = kind if still else f"a {image.format}" if image.format != "PNG" else "an animation"
                problem = f"a panoptic PNG holds ids as RGB of 8 bits, this image is {kind}"
                raise UserError(f"{path}: {problem}. Convert it, e.g. with `l2g data convert vipseg`.")
            # Pillow stores four bytes per pixel, so this is a plain copy; the fourth is masked below.
            content = image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA")
            ids = np.frombuffer(content, "<i4").reshape(image.size[::-1])
    except FileNotFoundError:
        raise UserError(f"{path}: no such panoptic PNG.") from None
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a readable image. Replace the file.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file.") from error
    return np.asarray(ids & np.int32(0xFFFFFF))


def write_ids(ids: NDArray[Any], path: Path) -> None:
    """Writes (H, W) segment ids below 2^24 as a panoptic PNG, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(ids_to_colours(ids)).save(partial, format="PNG", compress_level=1)
