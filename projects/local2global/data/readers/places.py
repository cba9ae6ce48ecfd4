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
_MAPS = "panomasksRGB"
"""VIPSeg's folder of panoptic maps."""
_MAX_FILES = 200
"""A folder with more JSON or zip files than this is not a dataset, but e.g. one file per frame."""


def annotation_files(folder: Path) -> Iterator[list[Path]]:
    """JSON files that may be annotation files, nearest first: stop at the first list that contains one."""
    near = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    yield near[:_MAX_FILES]
    far = [*folder.glob("*/*.json"), *folder.glob("*/annotations/*.json")]
    yield sorted(path for path in far if path not in near)[:_MAX_FILES]


def find_images(annotations: Path, names: Iterable[str], maps: bool = False) -> ImageRoot | None:
    """The folder with the most of the first few named files; None if no folder has any.

    The folder of an annotation file is searched first, zip files included, then its parent folder.

    Args:
        annotations: the annotation file.
        names: relative names of some files; `*` matches any of several suffixes.
        maps: whether the files are panoptic maps, which may have the same names as the frames.
    """
    probes = list(islice(names, _PROBES))
    near = annotations.parent
    for root in (near, near.parent):
        places: list[ImageRoot] = list(_folders(root, annotations.stem, maps))
        if root == near or near.name == "annotations":  # folders beside it may be other datasets
            places += _zipped_folders(root, probes, maps)
        counts = [sum(_has(folder, name) for name in probes) for folder in places]
        if any(counts):
            return places[counts.index(max(counts))]
    return None


def _folders(root: Path, stem: str, maps: bool) -> Iterator[Path]:
    """Folders of frames or of maps below a folder, the likely names first."""
    likely = (_MAPS, "") if maps else ("", "JPEGImages", "images", stem, f"{stem}/JPEGImages")
    below = sorted(path for path in root.iterdir() if path.is_dir())
    inner = (_MAPS,) if maps else ("JPEGImages", "images")
    places = [*(root / name for name in likely), *below, *(path / name for path in below for name in inner)]
    return (place for place in dict.fromkeys(places) if place.is_dir() and (maps or place.name != _MAPS))


def _has(folder: ImageRoot, name: str) -> bool:
    """Whether a folder has a named file; `*` matches any of several suffixes."""
    return any(folder.glob(name)) if "*" in name else image_path(folder, name).is_file()


def _zipped_folders(root: Path, probes: Sequence[str], maps: bool) -> Iterator[ZipPath]:
    """Folders in the zip files below a folder that contain one of the probes."""
    for path in sorted({*root.glob("*.zip"), *root.glob("*/*.zip")})[:_MAX_FILES]:
        with suppress(UserError):  # no images, or a damaged file
            everything = ZipPath(open_archive(path), ".")
            for probe in probes:
                pattern = probe if "*" in probe else escape(probe)
                inside = next((p for p in everything.glob(f"*{pattern}") if (_MAPS in str(p)) == maps), None)
                if inside is not None:
                    yield inside.ancestor(len(PurePosixPath(probe).parts))
                    break
