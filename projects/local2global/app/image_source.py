"""Sources of image files: a list of files, or one file of several frames (WebP, APNG, TIFF)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..data.readers.images import rgb_pixels
from ..errors import UserError
from ..limits import check_pixels
from .source import FOLDER_FPS, MAX_FPS, Source, TimedFrame, at_rate, identity_of, to_tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

#: Formats whose further frames are parts of a video.  Those of MPO, a kind of JPEG, are previews and other views.
_MULTI_FRAME = ("APNG", "GIF", "PNG", "TIFF", "WEBP")
_SUBFILE_TYPE, _REDUCED_OR_MASK = 254, 1 | 4  # TIFF: pages that are thumbnails or transparency masks


def open_images(name: str, paths: Sequence[Path], fps: Fraction | None) -> Source:
    """The frames of a video as image files, in this order; a single file may hold several frames.

    Raises:
        UserError: if a file cannot be read, differs in size from the first, or is one of several and holds
            several frames.
    """
    size, pages = _inspect(paths[0])
    if len(paths) == 1 and len(pages) > 1:
        return _open_pages(name, paths[0], fps)
    for path in paths:
        other, pages = _inspect(path)
        if other != size:
            raise UserError(
                f"{path}: {other[1]}x{other[0]} pixels, but {paths[0].name} has {size[1]}x{size[0]}; "
                "the frames of a video must all have one size"
            )
        if len(pages) > 1:
            raise UserError(
                f"{path}: {len(pages)} frames in one of {len(paths)} images; name this file alone to read it "
                "as a video"
            )
    names = tuple(f"{path.resolve().parent.name}/{path.name}" for path in paths)
    rate = fps or FOLDER_FPS
    return Source(
        name,
        rate,
        size,
        len(paths),
        lambda: at_rate((_read_image(path) for path in paths), rate),
        names,
        identity_of(paths, rate),
        path=(paths[0].parent if len(paths) > 1 else paths[0]).resolve(),
    )


def is_one_size(paths: Sequence[Path]) -> bool:
    """Whether all files are readable images of one frame and of one size."""
    try:
        found = [_inspect(path) for path in paths]
    except UserError:
        return False
    return len({size for size, _ in found}) == 1 and all(len(pages) == 1 for _, pages in found)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every error of Pillow into a UserError; corrupt files raise errors of many types."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image") from error
    except Exception as error:
        raise UserError(f"{path}: this image cannot be read ({error}); replace or remove it") from error


def _upright(image: Image.Image) -> Image.Image:
    # Reading the EXIF block of a PNG decodes the whole image, so the key is checked first.
    return ImageOps.exif_transpose(image) if "exif" in image.info else image


def _inspect(path: Path) -> tuple[tuple[int, int], list[int]]:
    """(height, width) and the indices of the frames of a file."""
    with _reading(path), Image.open(path) as image:
        check_pixels(*image.size)
        pages = _pages(image)
        upright = _upright(image)
        return (upright.height, upright.width), pages


def _pages(image: Image.Image) -> list[int]:
    count = getattr(image, "n_frames", 1) if image.format in _MULTI_FRAME else 1
    first = 1 if count > 1 and image.info.get("default_image") else 0  # an APNG's fallback is no frame
    pages = list(range(first, count))
    if image.format == "TIFF" and count > 1:
        pages = [page for page in pages if not _subfile_type(image, page) & _REDUCED_OR_MASK] or [0]
    image.seek(pages[0])
    return pages


def _subfile_type(image: Image.Image, page: int) -> int:
    image.seek(page)
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_SUBFILE_TYPE, 0))


def _read_image(path: Path) -> Tensor:
    with _reading(path), Image.open(path) as image:
        _pages(image)
        return to_tensor(rgb_pixels(_upright(image)))


# --- Several frames in one file ---


def _open_pages(name: str, path: Path, fps: Fraction | None) -> Source:
    with _reading(path), Image.open(path) as image:
        pages = _pages(image)
        upright = _upright(image)
        size = (upright.height, upright.width)
        image.load()  # WebP states the duration of a frame when the frame is decoded
        rate = fps or min(1 / _duration(image), Fraction(MAX_FPS))
    identity = identity_of([path], fps)
    read = partial(_read_pages, path, size, fps)
    return Source(name, rate, size, len(pages), read, None, identity, path=path.resolve())


def _duration(image: Image.Image) -> Fraction:
    """Seconds for which the current frame is shown."""
    milliseconds = image.info.get("duration") or 0
    return Fraction(milliseconds).limit_denominator(1000) / 1000 if milliseconds > 0 else 1 / FOLDER_FPS


def _read_pages(path: Path, size: tuple[int, int], fps: Fraction | None) -> Iterator[TimedFrame]:
    time = Fraction(0)
    with _reading(path), Image.open(path) as image:
        for page in _pages(image):
            image.seek(page)
            check_pixels(*image.size)
            pixels = rgb_pixels(_upright(image))
            if pixels.shape[:2] != size:
                height, width = pixels.shape[:2]
                raise UserError(
                    f"{path}: frame {page} has {width}x{height} pixels, the first {size[1]}x{size[0]}; "
                    "the frames of a video must all have one size"
                )
            yield to_tensor(pixels), float(time)
            time += 1 / fps if fps else _duration(image)
