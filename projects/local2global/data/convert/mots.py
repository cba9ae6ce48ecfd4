"""MOTS and KITTI MOTS (16-bit PNGs or txt files; id = class * 1000 + instance) as YouTube-VIS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..readers.images import image_size
from ..readers.rle import parse_outline
from .common import (
    Converted,
    SourceVideo,
    Tracks,
    folders,
    images_of,
    natural,
    read_labels,
    read_lines,
    split_labels,
    write_videos,
)

CLASSES = {1: "car", 2: "pedestrian"}
"""The classes of MOTS."""
IGNORE = 10_000
"""The id of pixels that are excluded from training and scoring."""
_DIVISOR = 1000


@dataclass(frozen=True)
class _Object:
    """One mask of one frame: the frame's number, the object's id, its RLE, and its place for messages."""

    frame: int
    id: int
    mask: dict[str, Any]
    place: str


def convert_mots(
    annotations: str | Path, images: str | Path, out: str | Path, link: bool = False
) -> Converted:
    """Writes `JPEGImages/` and `instances.json`.

    A video is `annotations/<video>/*.png`, `annotations/<video>.txt` or, in MOTSChallenge,
    `annotations/<video>/gt/gt.txt`, or in CVAT and `l2g predict --save mots`, `annotations/<video>/instances/*.png`;
    its frames are in `images/<video>/`, `images/<video>/img1/` or `images/<video>/images/`.  Frames are matched
    by the number in their file name.  Ignore regions become crowds, one for each class, because scorers match by class.
    Classes are car and pedestrian, or the lines of a `labels.txt` among the PNGs.

    Args:
        annotations: the folder of the masks.
        images: the folder of the frames.
        out: the folder to create.
        link: link frames instead of copying them.

    Raises:
        UserError: for an invalid line, mask or frame, with its place.
    """
    root = Path(annotations)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of masks.")
    names = _class_names(root)
    classes = {name: k for k, name in names.items()}
    empty = f"{root}: neither folders of PNG masks nor .txt files in it."
    return write_videos(_videos(root, Path(images), names), classes, out, link, Counter(), empty)


def _class_names(root: Path) -> dict[int, str]:
    files = [root / "labels.txt", *root.glob("*/labels.txt"), *root.glob("*/instances/labels.txt")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return dict(CLASSES)
    return dict(enumerate(read_lines(path), 1))


def _videos(root: Path, images: Path, classes: Mapping[int, str]) -> Iterator[SourceVideo]:
    for name, files in _mask_files(root):
        folder = images / name
        nested = (folder / name for name in ("img1", "images") if (folder / name).is_dir())
        frames = images_of(next(nested, folder))
        size = image_size(frames[0])
        yield SourceVideo(name, frames, size, _tracks(files, frames, size, classes))


def _mask_files(root: Path) -> Iterator[tuple[str, Sequence[Path]]]:
    """(name, its PNGs or its txt file) of each video."""
    for folder in folders(root):
        text = next((folder / name for name in ("gt/gt.txt", "gt.txt") if (folder / name).is_file()), None)
        maps = folder / "instances" if (folder / "instances").is_dir() else folder
        files = [text] if text else sorted(maps.glob("*.png"), key=natural)
        if files:
            yield folder.name, files
    for text in sorted(root.glob("*.txt"), key=natural):
        if text.name != "labels.txt":
            yield text.stem, [text]


def _number(path: Path) -> int:
    digits = re.findall("[0-9]+", path.stem)
    if not digits:
        raise UserError(f"{path}: no frame number in this file's name.")
    return int(digits[-1])


def _tracks(
    files: Sequence[Path], images: Sequence[Path], size: tuple[int, int], classes: Mapping[int, str]
) -> Tracks:
    positions = {_number(image): t for t, image in enumerate(images)}
    tracks = Tracks(len(images))
    for item in _read_text(files[0], size) if files[0].suffix == ".txt" else _read_maps(files, size):
        t, category = positions.get(item.frame), item.id // _DIVISOR
        if t is None:
            raise UserError(f"{item.place}: frame {item.frame} has no image in {images[0].parent}.")
        if item.id != IGNORE and category not in classes:
            listed = ", ".join(f"{k} {name}" for k, name in classes.items())
            raise UserError(f"{item.place}: object {item.id} is of class {category}; classes are {listed}.")
        try:
            if item.id == IGNORE:
                for k in classes:
                    tracks.add(("ignore", k), t, item.mask, k, crowd=True)
            else:
                tracks.add(item.id, t, item.mask, category)
        except ValueError as error:
            raise UserError(f"{item.place}: {error}.") from error
    return tracks


def _read_maps(files: Iterable[Path], size: tuple[int, int]) -> Iterator[_Object]:
    for path in files:
        for identity, mask in split_labels(read_labels(path), size, path):
            yield _Object(_number(path), identity, mask, str(path))


def _read_text(path: Path, size: tuple[int, int]) -> Iterator[_Object]:
    """The lines `frame id class height width rle`."""
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            place, parts = f"{path}: line {number}", line.split()
            if not parts:
                continue
            try:
                frame, identity, category, height, width = map(int, parts[:5])
                counts = parse_outline({"size": [height, width], "counts": parts[5]}, size)
            except (ValueError, IndexError) as error:
                problem = f"expected `frame id class height width rle` ({error})"
                raise UserError(f"{place}: {problem}.") from error
            if category != identity // _DIVISOR:
                problem = f"object {identity} is of class {identity // _DIVISOR}, not {category}"
                raise UserError(f"{place}: {problem}.")
            yield _Object(frame, identity, {"size": list(size), "counts": counts}, place)
