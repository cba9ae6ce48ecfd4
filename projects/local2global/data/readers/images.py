"""Image files as tensors: whole, or decoded smaller where the format can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import UserError

#: EXIF's tag of how a camera was held; 1 is upright.
ORIENTATION = 0x0112


def read_image(path: Path, shrink: int = 1) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, turned upright where its EXIF data say so.

    Args:
        path: the file.
        shrink: 2, 4 or 8 decodes an upright JPEG at a half, a quarter or an eighth of its size, if that divides both
            sides: several times faster, every pixel the mean of those it stands for.  Any other file comes whole.

    Raises:
        UserError: if the file is missing, truncated, or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            divides = width % shrink == 0 == height % shrink
            if shrink > 1 and divides and image.getexif().get(ORIENTATION, 1) == 1:
                image.draft("RGB", (width // shrink, height // shrink))
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file. Check the image folder of this dataset.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"not a readable image ({error}). Replace the file, or exclude its video."
        raise UserError(f"{path}: {problem}") from error
    # A view of rows of pixels: what is cut out of it is copied once, when it is drawn.
    return torch.from_numpy(pixels).permute(2, 0, 1)
