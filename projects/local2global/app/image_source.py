"""Sources of image files: a list of files, or one file of several frames (WebP, APNG, TIFF)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..data.readers.images import frames_of, open_image, orientation, upright_pixels
from ..errors import UserError
from .source import FOLDER_FPS, MAX_FPS, Source, TimedFrame, at_rate, identity_of, to_tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def open_images(name: str, paths: Sequence[Path], fps: Fraction | None) -> Source:
    """The frames of a video as image files, in this order; a single file may hold several frames.

    Raises:
        UserError: if a file cannot be read, differs in size from the first, or is one of several and holds
            several frames.
    """
    size, frames = _inspect(paths[0])
    if len(paths) == 1 and len(frames) > 1:
        return _open_frames(name, paths[0], fps)
    for path in paths:
        other, frames = _inspect(path)
        if other != size:
            raise UserError(
                f"{path}: {other[1]}x{other[0]} pixels, but {paths[0].name} has {size[1]}x{size[0]}; "
                "the frames of a video must all have one size"
            )
        if len(frames) > 1:
            raise UserError(
                f"{path}: {len(frames)} frames in one of {len(paths)} images; name this file alone to read it "
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
    return len({size for size, _ in found}) == 1 and all(len(frames) == 1 for _, frames in found)


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


def _inspect(path: Path) -> tuple[tuple[int, int], list[int]]:
    """(height, width) and the indices of the frames of a file."""
    with _reading(path), open_image(path) as image:
        frames = frames_of(image)
        return _upright_size(image), frames


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if orientation(image) > 4 else (height, width)


def _read_image(path: Path) -> Tensor:
    with _reading(path), open_image(path) as image:
        frames_of(image)
        return to_tensor(upright_pixels(image))


# --- Several frames in one file ---


def _open_frames(name: str, path: Path, fps: Fraction | None) -> Source:
    with _reading(path), open_image(path) as image:
        frames = frames_of(image)
        size = _upright_size(image)
        image.load()  # WebP states the duration of a frame when the frame is decoded
        rate = fps or min(1 / _duration(image), Fraction(MAX_FPS))
    identity = identity_of([path], fps)
    read = partial(_read_frames, path, size, fps)
    return Source(name, rate, size, len(frames), read, None, identity, path=path.resolve())


def _duration(image: Image.Image) -> Fraction:
    """Seconds for which the current frame is shown."""
    milliseconds = image.info.get("duration") or 0
    return Fraction(milliseconds).limit_denominator(1000) / 1000 if milliseconds > 0 else 1 / FOLDER_FPS


def _read_frames(path: Path, size: tuple[int, int], fps: Fraction | None) -> Iterator[TimedFrame]:
    time = Fraction(0)
    with _reading(path), open_image(path) as image:
        for index in frames_of(image):
            image.seek(index)
            pixels = upright_pixels(image)
            if pixels.shape[:2] != size:
                height, width = pixels.shape[:2]
                raise UserError(
                    f"{path}: frame {index} has {width}x{height} pixels, the first {size[1]}x{size[0]}; "
                    "the frames of a video must all have one size"
                )
            yield to_tensor(pixels), float(time)
            time += 1 / fps if fps else _duration(image)
