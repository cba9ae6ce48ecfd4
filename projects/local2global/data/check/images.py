"""Checks frames as files: present, complete, and of the annotated size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..readers.archives import ImageFile
from ..readers.images import PILLOW_ERRORS, exif_hint, upright_size
from .findings import Notes, Options

_BATCH = 256


@dataclass(frozen=True)
class ExpectedImage:
    """An image that an annotation file names.

    Attributes:
        path: its path.
        size: its annotated (height, width), None if the annotations state none.
        where: the entry that names it.
    """

    path: ImageFile
    size: tuple[int, int] | None
    where: str


@dataclass(frozen=True)
class ImageProblem:
    """A problem of a file."""

    kind: str
    problem: str
    fix: str


def check_images(expected: Sequence[ExpectedImage], notes: Notes, options: Options) -> None:
    """Reports every file that is missing, damaged or of another size."""
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        for start in range(0, len(expected), _BATCH):
            batch = expected[start : start + _BATCH]
            problems = pool.map(lambda image: inspect(image, options.decode), batch)
            for image, problem in zip(batch, problems, strict=True):
                if problem is not None:
                    notes.error(problem.kind, image.where, problem.problem, problem.fix, file=str(image.path))
            if options.progress is not None:
                options.progress(start + len(batch), len(expected))


def inspect(image: ExpectedImage, decode: bool) -> ImageProblem | None:
    """The problem of one file, or None."""
    restore = "Restore the file from its source, or leave its video out"
    try:
        if isinstance(image.path, Path) and image.path.stat().st_size == 0:
            return ImageProblem("corrupt-image", "the file is empty", restore)
        size = upright_size(image.path, decode)
    except FileNotFoundError:
        return ImageProblem("missing-frame", f"no such image file{_hint(image.path)}", restore)
    except PILLOW_ERRORS as error:
        return ImageProblem("corrupt-image", f"not a readable image ({_short(error)})", restore)
    if image.size is not None and size != image.size:
        problem = f"{_text(size)} pixels (height x width), but its annotations say {_text(image.size)}"
        fix = "Resize the image, or correct height and width and redraw the masks"
        hint = exif_hint(image.path, image.size).strip(" .")
        return ImageProblem("frame-size", problem, hint or fix)
    return None


def _hint(path: ImageFile) -> str:
    if not isinstance(path, Path):
        return ""
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent.name})"
    near = sorted(p.name for p in path.parent.glob(f"{path.stem}.*") if p.name != path.name)
    return f", but there is {near[0]}" if near else ""


def _short(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "unknown image format" if "cannot identify" in text else text


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
