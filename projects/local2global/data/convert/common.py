"""Shared by the converters: finding frames, reading label maps, collecting tracks, and writing YouTube-VIS folders."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..readers.images import open_image, reading_image
from ..readers.rle import encode_mask
from ..writers import ImageWriter, YouTubeVisWriter, new_folder

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        files: the annotation files written.
        videos: the number of videos, or of images of a COCO file.
        frames: the number of frames of all videos.
        instances: the number of annotations written, ignore regions included.
        skipped: what was left out, in words, and how often.
    """

    files: tuple[Path, ...]
    videos: int
    frames: int
    instances: int
    skipped: Counter[str] = field(default_factory=Counter)


class Tracks:
    """The masks of one video, collected frame by frame.

    Args:
        length: frames of the video.

    Attributes:
        by_object: {category_id, iscrowd, segmentations} of each object, in order of first appearance.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self.by_object: dict[Hashable, dict[str, Any]] = {}

    def add(
        self, identity: Hashable, t: int, mask: dict[str, Any], category: int, crowd: bool = False
    ) -> None:
        """Adds the RLE of an object in frame `t`.

        Raises:
            ValueError: if the object has another category, or already has a mask in this frame.
        """
        empty = {"category_id": category, "iscrowd": int(crowd), "segmentations": [None] * self._length}
        track = self.by_object.setdefault(identity, empty)
        if track["category_id"] != category:
            raise ValueError(f"object {identity} is of category {track['category_id']} and of {category}")
        if track["segmentations"][t] is not None:
            raise ValueError(f"object {identity} has two masks in one frame")
        track["segmentations"][t] = mask


@dataclass(frozen=True)
class SourceVideo:
    """A video of the source dataset.

    Attributes:
        name: the name of its new folder.
        images: its frames.
        size: (height, width) of its frames.
        tracks: its objects.
    """

    name: str
    images: list[Path]
    size: tuple[int, int]
    tracks: Tracks


def write_videos(
    videos: Iterable[SourceVideo],
    classes: dict[str, int],
    out: str | Path,
    link: bool,
    skipped: Counter[str],
    none_found: str,
) -> Converted:
    """Writes `JPEGImages/` and `instances.json`.

    Args:
        videos: the videos, read one after another.
        classes: the category id of each class name.
        out: the folder to create.
        link: link frames instead of copying them.
        skipped: passed on to the result.
        none_found: the message if there is no video.

    Raises:
        UserError: if there is no video, or `out` already exists.
    """
    frames = 0
    with new_folder(Path(out)) as folder:
        writer = YouTubeVisWriter(folder, [{"id": k, "name": name} for name, k in classes.items()])
        for video in videos:
            files = [(image.name, image_writer(image, link)) for image in video.images]
            writer.add(video.name, video.size, files, video.tracks.by_object.values())
            frames += len(video.images)
        if not writer.videos:
            raise UserError(none_found)
        writer.close()
    file = Path(out) / "instances.json"
    return Converted((file,), len(writer.videos), frames, len(writer.annotations), skipped)


def image_writer(source: Path, link: bool) -> ImageWriter:
    """A function that copies or links an image file to a new path."""

    def write(path: Path) -> None:
        if link:
            os.symlink(source.resolve(), path)
        else:
            shutil.copyfile(source, path)

    return write


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key that compares digits as numbers: frame 2 before frame 10."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(k % 2 == 0, int(part) if k % 2 else 0, part) for k, part in enumerate(parts) if part]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without spaces around them.

    Raises:
        UserError: if it is not UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text.") from None
    return [line.strip() for line in lines if line.strip()]


def folder_of(path: Path, *names: str) -> Path:
    """The first of `names` that is a folder below `path`.

    Raises:
        UserError: if none is.
    """
    folder = next((path / name for name in names if (path / name).is_dir()), None)
    if folder is None:
        expected = " or ".join(f"{name}/" for name in names)
        raise UserError(f"{path}: no folder {expected} in it.")
    return folder


def folders(path: Path) -> list[Path]:
    """The folders directly below a folder, in natural order, without hidden ones."""
    return sorted((p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)


def images_of(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order.

    Raises:
        UserError: if the folder does not exist, or contains no image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of frames.")
    images = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    ordered = sorted(images, key=natural)
    if not ordered:
        raise UserError(f"{folder}: no image in this folder.")
    return ordered


def match_frames(masks: list[Path], folder: Path, skipped: Counter[str]) -> list[Path]:
    """The frame in `folder` of each mask, matched by file name without suffix.

    Raises:
        UserError: if a mask has no frame.
    """
    by_stem = {image.stem: image for image in images_of(folder)}
    for mask in masks:
        if mask.stem not in by_stem:
            raise UserError(f"{mask}: no frame {mask.stem} in {folder}.")
    if len(by_stem) > len(masks):
        skipped["frames without a mask file"] += len(by_stem) - len(masks)
    return [by_stem[mask.stem] for mask in masks]


def read_labels(path: Path) -> NDArray[np.int64]:
    """(H, W) the values of a one-channel image: palette indices, grey levels or 16-bit ids.

    Raises:
        UserError: if the file cannot be read, or has several channels.
    """
    with reading_image(path), open_image(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise UserError(f"{path}: {labels.shape[2]} channels; expected one number per pixel.")
    return labels.astype(np.int64)


def split_labels(
    labels: NDArray[np.int64], size: tuple[int, int], path: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(value, RLE) of every value but 0 of a label map.

    Raises:
        UserError: if the map does not have its frame's size.
    """
    if labels.shape != size:
        both = f"{labels.shape[0]}x{labels.shape[1]} for frames of {size[0]}x{size[1]}"
        raise UserError(f"{path}: a mask of {both}.")
    for value in np.unique(labels).tolist():
        if value:
            yield value, encode_mask(labels == value)
