"""Image files as tensors, and the one error that unreadable files raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import UserError

#: EXIF's tag of the camera's orientation; 1 is upright, values above 4 swap height and width.
ORIENTATION = 0x0112


@contextmanager
def reading_image(path: Path) -> Iterator[None]:
    """Turns the errors of a missing, truncated or foreign file into a UserError that names the path."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file. Check the image folder of this dataset.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"not a readable image ({error}). Replace the file, or exclude its video."
        raise UserError(f"{path}: {problem}") from error


def read_image(path: Path, shrink: int = 1) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, rotated upright according to its EXIF data.

    Args:
        path: the file.
        shrink: 2, 4 or 8 decodes an upright JPEG at 1/2, 1/4 or 1/8 of its size, if that divides both sides.  This is
            several times faster, and each pixel is the mean of the pixels that it replaces.  Other files are decoded
            at full size.

    Raises:
        UserError: if the file is missing, truncated, or not an image.
    """
    with reading_image(path), Image.open(path) as image:
        width, height = image.size
        divides = width % shrink == 0 == height % shrink
        if shrink > 1 and divides and image.getexif().get(ORIENTATION, 1) == 1:
            image.draft("RGB", (width // shrink, height // shrink))
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    # A view, not a copy: the crop that is drawn from it is copied once.
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_sized(path: Path, size: tuple[int, int], shrink: int = 1) -> Tensor:
    """`read_image` of a file that must have `size` (height, width).

    Raises:
        UserError: as `read_image`, and if the image has another size.
    """
    image = read_image(path, shrink)
    height, width = image.shape[1:]
    if (height, width) not in (size, (size[0] // shrink, size[1] // shrink)):
        problem = f"{height}x{width} pixels (height x width), but its annotations say {size[0]}x{size[1]}"
        raise UserError(f"{path}: {problem}.")
    return image


def upright_size(path: Path, decode: bool = False) -> tuple[int, int]:
    """(height, width) of an image file after EXIF rotation, from its header.

    Args:
        path: the file.
        decode: also decode the file, at the lowest cost that detects truncation.

    Raises:
        OSError: or another error of Pillow, if the file cannot be read.
    """
    with Image.open(path) as image:
        # Reading the EXIF block of a PNG decodes the file, so `info` is checked first.
        rotated = "exif" in image.info and image.getexif().get(ORIENTATION, 1) > 4
        width, height = image.size
        if decode:
            if image.format == "JPEG":
                # Every byte is parsed, but few pixels are computed.
                image.draft("L", (1, 1))
            image.load()
    return (width, height) if rotated else (height, width)


def image_size(path: Path) -> tuple[int, int]:
    """`upright_size` from the header.

    Raises:
        UserError: if the file cannot be read.
    """
    with reading_image(path):
        return upright_size(path)
