"""Image files as tensors, and the error that unreadable files raise."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import UserError
from ...limits import check_pixels
from .archives import ImageFile, ImageRoot, ZipPath

#: EXIF's tag of the camera's orientation; 1 is upright, values above 4 swap height and width.
ORIENTATION = 0x0112


@overload
def image_path(folder: Path, name: str) -> Path: ...
@overload
def image_path(folder: ImageRoot, name: str) -> ImageFile: ...
def image_path(folder: ImageRoot, name: str) -> ImageFile:
    """The path of an image named in an annotation file.  Backslashes are read as slashes unless such a file exists."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.is_file() else path


#: What Pillow raises for damaged files; the last four for EXIF data.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
)


#: Formats that are opened.  Pillow knows others, of which EPS starts another program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")

#: Formats whose further frames are parts of a video.  Those of MPO, a kind of JPEG, are previews and other views.
_MULTI_FRAME = ("APNG", "AVIF", "GIF", "PNG", "TIFF", "WEBP")
_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 1 | 4  # TIFF: pages that are thumbnails or transparency masks
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags

_EXIF_KEYS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # of `Image.info`
_TAIL = 1 << 17  # bytes at the end of a PNG that are searched for EXIF data


def open_image(path: ImageFile) -> Image.Image:
    """Opens an image file, in a folder or in a zip file.

    Raises:
        OSError: or another error of Pillow, if the file cannot be read.
    """
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise OSError("not a file")  # a pipe would wait for its writer
    image = Image.open(BytesIO(path.read_bytes()) if isinstance(path, ZipPath) else path, formats=_formats())
    check_pixels(*image.size)
    return image


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def frames_of(image: Image.Image) -> list[int]:
    """The indices of the frames of an open image; the first is selected."""
    count = getattr(image, "n_frames", 1) if image.format in _MULTI_FRAME else 1
    first = 1 if count > 1 and image.info.get("default_image") else 0  # an APNG's fallback is no frame
    frames = list(range(first, count))
    if image.format == "TIFF" and count > 1:
        frames = [frame for frame in frames if not _subfile_type(image, frame) & _REDUCED_OR_MASK] or [0]
    image.seek(frames[0])
    return frames


def _subfile_type(image: Image.Image, frame: int) -> int:
    image.seek(frame)
    return int(getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0))


def _select_only_frame(image: Image.Image) -> None:
    count = len(frames_of(image))
    if count > 1:
        raise ValueError(f"{count} frames in one file, expected a still image")


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that is not yet decoded, 1 to 8; 1 if Pillow rotates it, or it has none."""
    if image.format == "TIFF" or (image.format == "PNG" and not _may_have_exif(image)):
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _may_have_exif(image: Image.Image) -> bool:
    """Whether a PNG may have EXIF data, perhaps after its pixels; `getexif` would decode it."""
    file = getattr(image, "fp", None)
    if _EXIF_KEYS & image.info.keys() or file is None:
        return True
    place = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    tail = file.read(_TAIL)
    file.seek(place)
    return b"eXIf" in tail or b"Orientation" in tail or b"Raw profile" in tail


@contextmanager
def reading_image(path: ImageFile) -> Iterator[None]:
    """Turns the errors of a missing, truncated or foreign file into a UserError that names the path."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file. Check the image folder of this dataset.") from None
    except PILLOW_ERRORS as error:
        problem = f"not a readable image ({error}). Replace the file, or exclude its video."
        raise UserError(f"{path}: {problem}") from error


def read_image(path: ImageFile, shrink: int = 1) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, rotated upright according to its EXIF data.

    Args:
        path: the file.
        shrink: 2, 4 or 8 decodes an upright JPEG at 1/2, 1/4 or 1/8 of its size, if that divides both sides.  This is
            several times faster, and each pixel is the mean of the pixels that it replaces.  Other files are decoded
            at full size.

    Raises:
        UserError: if the file is missing, truncated, or not an image.
    """
    with reading_image(path), open_image(path) as image:
        _select_only_frame(image)
        width, height = image.size
        divides = width % shrink == 0 == height % shrink
        if shrink > 1 and divides and orientation(image) == 1:
            image.draft("RGB", (width // shrink, height // shrink))
        pixels = upright_pixels(image)
    # A view, not a copy: the crop that is drawn from it is copied once.
    return torch.from_numpy(pixels).permute(2, 0, 1)


def upright_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of the current frame of an image file, rotated upright.

    Raises:
        ValueError: if the values are out of range or their range is unknown.
    """
    _check_frame(image)
    return rgb_pixels(ImageOps.exif_transpose(image))


def _check_frame(image: Image.Image) -> None:
    """Refuses a frame that is too large, and TIFFs whose values Pillow passes on without their meaning."""
    check_pixels(*image.size)
    tags = getattr(image, "tag_v2", None)
    if tags is None or not image.mode.startswith("I"):
        return
    bits, sample_format = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if tuple(bits) != (16,) or tuple(sample_format) != (1,):
        raise ValueError(
            f"a TIFF of {'signed ' * (2 in sample_format)}{bits[0]}-bit integers; convert it to 16 bits"
        )
    if tags.get(_PHOTOMETRIC) == 0:
        raise ValueError("a 16-bit TIFF in which 0 is white; convert it to one in which 0 is black")


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image of any depth.

    16-bit values are divided by 256, as Pillow does for colour images.  Floating-point values must lie in [0, 1].
    `Image.convert` would clip both at 255.

    Raises:
        ValueError: if the values are out of range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = (float(value) for value in (values.min(), values.max()))
        top = 1.0 if image.mode == "F" else 65535.0
        if not 0 <= low <= high <= top:
            raise ValueError(f"values from {low:g} to {high:g}, expected 0 to {top:g} in mode {image.mode}")
        scaled = np.rint(values * np.float32(255)) if image.mode == "F" else values >> 8
        return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))


def read_sized(path: ImageFile, size: tuple[int, int], shrink: int = 1) -> Tensor:
    """`read_image` of a file that must have `size` (height, width).

    Raises:
        UserError: as `read_image`, and if the image has another size.
    """
    image = read_image(path, shrink)
    height, width = image.shape[1:]
    if (height, width) not in (size, (size[0] // shrink, size[1] // shrink)):
        problem = f"{height}x{width} pixels (height x width), but its annotations say {size[0]}x{size[1]}"
        raise UserError(f"{path}: {problem}.{exif_hint(path, size)}")
    return image


def exif_hint(path: ImageFile, size: tuple[int, int]) -> str:
    """A sentence if only the EXIF rotation of a readable file makes its size differ from `size`, else ""."""
    with open_image(path) as image:
        if image.size[::-1] == size and orientation(image) > 4:
            return (
                " Its EXIF data rotate it by 90 degrees: annotate the rotated image, or remove the EXIF data."
            )
    return ""


def upright_size(path: ImageFile, decode: bool = False) -> tuple[int, int]:
    """(height, width) of an image file after EXIF rotation, from its header.

    Args:
        path: the file.
        decode: also decode the file, at the lowest cost that detects truncation.

    Raises:
        OSError: or another error of Pillow, if the file cannot be read.
    """
    with open_image(path) as image:
        _select_only_frame(image)
        _check_frame(image)
        rotated = orientation(image) > 4
        width, height = image.size
        if decode:
            if image.format == "JPEG":
                # Every byte is parsed, but few pixels are computed.
                image.draft("L", (1, 1))
            image.load()
            if image.mode == "F" or image.mode.startswith("I"):
                rgb_pixels(image)
    return (width, height) if rotated else (height, width)


def image_size(path: ImageFile) -> tuple[int, int]:
    """`upright_size` from the header.

    Raises:
        UserError: if the file cannot be read.
    """
    with reading_image(path):
        return upright_size(path)
