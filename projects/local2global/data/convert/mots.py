"""MOTS and KITTI MOTS (16-bit PNGs or txt files; id = class * 1000 + instance) as YouTube-VIS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..readers.rle import compress
from ..writers import YouTubeVisWriter, new_folder
from .common import Converted, Tracks, carry, encode, folders, image_size, images_of, natural, read_labels

CLASSES = {1: "car", 2: "pedestrian"}
"""MOTS's own."""
IGNORE = 10_000
"""The id of pixels that are left out of training and scoring."""
_DIVISOR = 1000


@dataclass(frozen=True)
class _Object:
    """One mask of one frame: its id, the frame's number, and its RLE."""

    frame: int
    id: int
    mask: dict[str, Any]
    place: str


def convert_mots(
    annotations: str | Path, images: str | Path, out: str | Path, link: bool = False
) -> Converted:
    """Writes `JPEGImages/` and `instances.json`.

    A video is `annotations/<video>/*.png`, `annotations/<video>.txt` or, as MOTSChallenge has it,
    `annotations/<video>/gt/gt.txt`; its frames are `images/<video>/` or `images/<video>/img1/`.  Frames are found by
    the number in their file name.  Ignore regions become crowds, one for each class, as scorers match by class.
    Classes are MOTS's car and pedestrian, or the lines of a `labels.txt` among the PNGs.

    Args:
        annotations: the folder of the masks.
        images: the folder of the frames.
        out: the folder to make.
        link: link frames instead of copying them.

    Raises:
        UserError: for a line, a mask or a frame that does not fit, with its place.
    """
    root, pictures = Path(annotations), Path(images)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of masks.")
    classes = _class_names(root)
    videos = frames = instances = 0
    with new_folder(Path(out)) as folder:
        listed = [{"id": k, "name": name} for k, name in classes.items()]
        with YouTubeVisWriter(folder, listed) as writer:
            for name, files in _videos(root):
                place = pictures / name
                found = images_of(place / "img1" if (place / "img1").is_dir() else place)
                size = image_size(found[0])
                tracks = _tracks(files, found, size, classes)
                writer.add(name, size, carry(found, link), tracks.annotations())
                videos, frames, instances = videos + 1, frames + len(found), instances + len(tracks)
        if not videos:
            raise UserError(f"{root}: neither folders of PNG masks nor .txt files in it.")
    return Converted((Path(out) / "instances.json",), videos, frames, instances)


def _class_names(root: Path) -> dict[int, str]:
    files = [root / "labels.txt", *root.glob("*/labels.txt")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return dict(CLASSES)
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return dict(enumerate(names, 1))


def _videos(root: Path) -> Iterator[tuple[str, Sequence[Path]]]:
    """(name, its PNGs or its txt file) of each video."""
    for folder in folders(root):
        text = next((folder / name for name in ("gt/gt.txt", "gt.txt") if (folder / name).is_file()), None)
        files = [text] if text else sorted(folder.glob("*.png"), key=natural)
        if files:
            yield folder.name, files
    for text in sorted(root.glob("*.txt"), key=natural):
        if text.name != "labels.txt":
            yield text.stem, [text]


def _number(path: Path) -> int:
    digits = "".join(c if c.isdigit() else " " for c in path.stem).split()
    if not digits:
        raise UserError(f"{path}: no frame number in this file's name.")
    return int(digits[-1])


def _tracks(
    files: Sequence[Path], images: Sequence[Path], size: tuple[int, int], classes: Mapping[int, str]
) -> Tracks:
    positions = {_number(image): t for t, image in enumerate(images)}
    tracks = Tracks(len(images))
    for found in _read_text(files[0], size) if files[0].suffix == ".txt" else _read_maps(files, size):
        t, category = positions.get(found.frame), found.id // _DIVISOR
        if t is None:
            raise UserError(f"{found.place}: frame {found.frame} has no image in {images[0].parent}.")
        if found.id != IGNORE and category not in classes:
            listed = ", ".join(f"{k} {name}" for k, name in classes.items())
            raise UserError(f"{found.place}: object {found.id} is of class {category}; known are {listed}.")
        try:
            if found.id == IGNORE:
                for k in classes:
                    tracks.add(("ignore", k), t, found.mask, k, crowd=True)
            else:
                tracks.add(found.id, t, found.mask, category)
        except ValueError as error:
            raise UserError(f"{found.place}: {error}.") from error
    return tracks


def _read_maps(files: Iterable[Path], size: tuple[int, int]) -> Iterator[_Object]:
    for path in files:
        labels = read_labels(path)
        if labels.shape != size:
            wrong = f"{labels.shape[0]}x{labels.shape[1]}"
            raise UserError(f"{path}: a mask of {wrong} for frames of {size[0]}x{size[1]}.")
        for identity in np.unique(labels).tolist():
            if identity:
                yield _Object(_number(path), identity, encode(labels == identity), str(path))


def _read_text(path: Path, size: tuple[int, int]) -> Iterator[_Object]:
    """The lines `frame id class height width rle`."""
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            place, parts = f"{path}: line {number}", line.split()
            if not parts:
                continue
            try:
                frame, identity, category, height, width = map(int, parts[:5])
                counts, _ = compress({"size": [height, width], "counts": parts[5]}, size)
            except (ValueError, IndexError) as error:
                problem = f"expected `frame id class height width rle` ({error})"
                raise UserError(f"{place}: {problem}.") from error
            if category != identity // _DIVISOR:
                raise UserError(
                    f"{place}: object {identity} is of class {identity // _DIVISOR}, not {category}."
                )
            yield _Object(frame, identity, {"size": list(size), "counts": counts}, place)
