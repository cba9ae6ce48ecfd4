"""Frames as files: there, whole, and of the size that their annotations say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from .findings import Notes, Options

_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap height and width."""
_ORIENTATION = 0x0112
_BATCH = 256


@dataclass(frozen=True)
class ExpectedImage:
    """One file to look at.

    Attributes:
        path: where it should be.
        size: (height, width) that its annotations say, or None if they say nothing usable.
        where: the entry that names it.
    """

    path: Path
    size: tuple[int, int] | None
    where: str


@dataclass(frozen=True)
class ImageProblem:
    """What is wrong with a file."""

    kind: str
    problem: str
    fix: str


def check_images(expected: Sequence[ExpectedImage], notes: Notes, options: Options) -> None:
    """Notes every file that is missing, damaged or of another size."""
    done = 0
    for images, problems in _inspected(expected, options):
        for image, problem in zip(images, problems, strict=True):
            if problem is not None:
                notes.error(problem.kind, image.where, problem.problem, problem.fix, file=str(image.path))
        done += len(images)
        if options.progress is not None:
            options.progress(done, len(expected))


def _inspected(
    expected: Iterable[ExpectedImage], options: Options
) -> Iterator[tuple[list[ExpectedImage], list[ImageProblem | None]]]:
    images = iter(expected)
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        while batch := list(islice(images, _BATCH)):
            yield batch, list(pool.map(lambda image: inspect(image, options.decode), batch))


def inspect(image: ExpectedImage, decode: bool) -> ImageProblem | None:
    """What is wrong with one file, or None."""
    restore = "Restore the file from its source, or leave its video out"
    try:
        if image.path.stat().st_size == 0:
            return ImageProblem("corrupt-image", "the file is empty", restore)
        size = upright_size(image.path, decode)
    except FileNotFoundError:
        return ImageProblem("missing-frame", f"no such image file{_hint(image.path)}", restore)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return ImageProblem("corrupt-image", f"not a readable image ({_short(error)})", restore)
    if image.size is not None and size != image.size:
        problem = f"{_text(size)} pixels (height x width), but its annotations say {_text(image.size)}"
        fix = "Resize the image, or correct height and width and redraw the masks"
        return ImageProblem("frame-size", problem, fix)
    return None


def upright_size(path: Path, decode: bool = False) -> tuple[int, int]:
    """(height, width) of an image when upright; decodes it whole if told so, at the least cost."""
    with Image.open(path) as image:
        # Asking a PNG for its EXIF block decodes it, so the cheap look comes first.
        turned = "exif" in image.info and image.getexif().get(_ORIENTATION) in _TURNED
        width, height = image.size
        if decode:
            if image.format == "JPEG":
                # Every byte is still parsed, but few pixels are computed.
                image.draft("L", (1, 1))
            image.load()
    return (width, height) if turned else (height, width)


def _hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent.name})"
    near = sorted(p.name for p in path.parent.glob(f"{path.stem}.*") if p.name != path.name)
    return f", but there is {near[0]}" if near else ""


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "no image format that is known" if "cannot identify" in text else text


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
