"""Finds the annotation files of a folder, and the image folder of an annotation file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from glob import escape
from itertools import islice
from pathlib import Path, PurePosixPath

from ...errors import UserError
from .archives import ImageRoot, ZipPath, open_archive
from .images import image_path

_PROBES = 8
_MAX_FILES = 200
"""A folder with more JSON or zip files than this is not a dataset, but e.g. one file per frame."""


def annotation_files(folder: Path) -> Iterator[list[Path]]:
    """JSON files that may be annotation files, nearest first: stop at the first list that contains one."""
    near = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    yield near[:_MAX_FILES]
    far = [*folder.glob("*/*.json"), *folder.glob("*/annotations/*.json")]
    yield sorted(path for path in far if path not in near)[:_MAX_FILES]


def find_images(annotations: Path, names: Iterable[str]) -> ImageRoot | None:
    """The folder near an annotation file with the most of the first few named files; None if no folder has any.

    It may lie in a zip file.

    Args:
        annotations: the annotation file.
        names: relative names of some files; `*` stands for several suffixes.
    """
    probes = list(islice(names, _PROBES))
    best: ImageRoot | None = None
    most = 0
    places: list[ImageRoot] = [*_folders(annotations), *_zipped_folders(annotations, probes)]
    for folder in places:
        count = sum(_has(folder, name) for name in probes)
        if count > most:
            best, most = folder, count
        if probes and count == len(probes):
            break
    return best


def _folders(annotations: Path) -> Iterator[Path]:
    """Folders near an annotation file, the likely names first."""
    roots = [annotations.parent, annotations.parent.parent]
    stem = annotations.stem
    likely = ("", "JPEGImages", "images", stem, f"{stem}/JPEGImages", "panomasksRGB", "VIPSeg_720P/images")
    places = [root / name for root in roots for name in likely]
    for root in roots:
        below = sorted(path for path in root.iterdir() if path.is_dir())
        places += below
        places += [path / name for path in below for name in ("JPEGImages", "images", "panomasksRGB")]
    return (place for place in dict.fromkeys(places) if place.is_dir())


def _has(folder: ImageRoot, name: str) -> bool:
    """Whether a folder has a named file; `*` stands for several suffixes."""
    return any(folder.glob(name)) if "*" in name else image_path(folder, name).is_file()


def _zipped_folders(annotations: Path, probes: Sequence[str]) -> Iterator[ZipPath]:
    """Folders in the zip files near an annotation file that contain one of the probes."""
    # Not in all folders beside the annotation file's: they may be other datasets.
    root = annotations.parent.parent if annotations.parent.name == "annotations" else annotations.parent
    found = {*root.glob("*.zip"), *root.glob("*/*.zip"), *annotations.parent.glob("*.zip")}
    for path in sorted(found)[:_MAX_FILES]:
        with suppress(UserError):  # no images, or a damaged file
            everything = ZipPath(open_archive(path), ".")
            for probe in probes:
                pattern = probe if "*" in probe else escape(probe)
                inside = next(everything.glob(f"*{pattern}"), None)
                if inside is not None:
                    yield inside.ancestor(len(PurePosixPath(probe).parts))
                    break
