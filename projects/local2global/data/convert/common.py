"""What converters share: frames found, copied or linked, and a video's masks gathered by identity."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from ...errors import UserError
from ..check.images import upright_size
from ..writers import ImageWriter

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Converted:
    """What a converter did.

    Attributes:
        files: the annotation files written.
        videos: videos, or images of a COCO file.
        frames: frames of all videos.
        instances: annotations written, ignore regions among them.
        skipped: what was left out, in words, and how often.
    """

    files: tuple[Path, ...]
    videos: int
    frames: int
    instances: int
    skipped: Counter[str] = field(default_factory=Counter)


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key that reads runs of digits as numbers: frame 2 before frame 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts if part]


def folder_of(path: Path, *names: str) -> Path:
    """The first of `names` that is a folder below `path`.

    Raises:
        UserError: if none is.
    """
    found = next((path / name for name in names if (path / name).is_dir()), None)
    if found is None:
        wanted = " or ".join(f"{name}/" for name in names)
        raise UserError(f"{path}: no folder {wanted} in it.")
    return found


def folders(path: Path) -> list[Path]:
    """The folders directly below a folder, in natural order; hidden ones are left out."""
    found = (p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=natural)


def images_of(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of frames.")
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    images = sorted(found, key=natural)
    if not images:
        raise UserError(f"{folder}: no image in this folder.")
    return images


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says which file it is that cannot be read."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file.") from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file when upright, from its header.

    Raises:
        UserError: if it cannot be read.
    """
    with readable(path):
        return upright_size(path)


def read_labels(path: Path) -> NDArray[np.int64]:
    """(H, W) the numbers that a one-channel image holds: palette indices, grey levels or 16-bit ids.

    Raises:
        UserError: if it cannot be read, or has several channels.
    """
    with readable(path), Image.open(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise UserError(f"{path}: {labels.shape[2]} channels; expected one number a pixel.")
    return labels.astype(np.int64)


def carried(source: Path, link: bool) -> ImageWriter:
    """What brings an image file to its new place, as a copy or as a symbolic link."""

    def write(path: Path) -> None:
        if link:
            os.symlink(source.resolve(), path)
        else:
            shutil.copyfile(source, path)

    return write


def carry(images: Sequence[Path], link: bool) -> list[tuple[str, ImageWriter]]:
    """(file name, what writes it) of each image, as `YouTubeVisWriter.add` takes them."""
    return [(image.name, carried(image, link)) for image in images]


def encode(mask: NDArray[Any]) -> dict[str, Any]:
    """An (H, W) mask as compressed RLE, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


class Tracks:
    """The masks of one video by identity, frame by frame.

    Args:
        length: frames of the video.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._tracks: dict[Hashable, dict[str, Any]] = {}

    def add(
        self, identity: Hashable, t: int, mask: dict[str, Any], category: int, crowd: bool = False
    ) -> None:
        """Notes the RLE of an identity in frame `t`.

        Raises:
            ValueError: if the identity was of another category, or has a mask in this frame.
        """
        empty = {"category_id": category, "iscrowd": int(crowd), "segmentations": [None] * self._length}
        track = self._tracks.setdefault(identity, empty)
        if track["category_id"] != category:
            raise ValueError(f"object {identity} is of category {track['category_id']} and of {category}")
        if track["segmentations"][t] is not None:
            raise ValueError(f"object {identity} has two masks in one frame")
        track["segmentations"][t] = mask

    def __len__(self) -> int:
        """The number of identities."""
        return len(self._tracks)

    def annotations(self) -> Iterable[dict[str, Any]]:
        """The tracks in the order in which they were first seen."""
        return self._tracks.values()
