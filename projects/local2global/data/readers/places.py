"""Finds the annotation files of a folder, and the image folder of an annotation file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from .images import image_path

_PROBES = 8
_MAX_FILES = 200
"""A folder with more JSON files than this is not a dataset, but e.g. one file per frame."""


def annotation_files(folder: Path) -> Iterator[list[Path]]:
    """JSON files that may be annotation files, nearest first: stop at the first list that contains one."""
    near = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    yield near[:_MAX_FILES]
    far = [*folder.glob("*/*.json"), *folder.glob("*/annotations/*.json")]
    yield sorted(path for path in far if path not in near)[:_MAX_FILES]


def find_images(annotations: Path, names: Iterable[str]) -> Path | None:
    """The folder near an annotation file that contains the most of the first few named files, None if none does.

    Args:
        annotations: the annotation file.
        names: relative names of some files; `*` stands for several suffixes.
    """
    probes = list(islice(names, _PROBES))
    best, most = None, 0
    for folder in _folders(annotations):
        count = sum(
            any(folder.glob(name)) if "*" in name else image_path(folder, name).is_file() for name in probes
        )
        if count > most:
            best, most = folder, count
        if probes and count == len(probes):
            break
    return best


def _folders(annotations: Path) -> Iterator[Path]:
    """Folders near an annotation file, likely ones first."""
    roots = [annotations.parent, annotations.parent.parent]
    stem = annotations.stem
    likely = ("", "JPEGImages", "images", stem, f"{stem}/JPEGImages", "panomasksRGB", "VIPSeg_720P/images")
    places = [root / name for root in roots for name in likely]
    for root in roots:
        below = sorted(path for path in root.iterdir() if path.is_dir())
        places += below
        places += [path / name for path in below for name in ("JPEGImages", "images", "panomasksRGB")]
    return (place for place in dict.fromkeys(places) if place.is_dir())
