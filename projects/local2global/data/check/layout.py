"""Which files of a folder are a dataset: annotation files by what they hold, image folders by where frames lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import UserError

YOUTUBE_VIS, COCO, VIPSEG = "YouTube-VIS", "COCO", "VIPSeg"
_PROBES = 8
_MOST_FILES = 200
"""A folder with more JSON files than this holds something else, e.g. one file per frame."""


def layout_of(content: Mapping[str, Any]) -> str | None:
    """What an annotation file's content is, None if it is none of ours."""
    videos, annotations = content.get("videos"), content.get("annotations")
    if isinstance(videos, list):
        panoptic = any(isinstance(v, dict) and ("images" in v or "video_id" in v) for v in videos[:_PROBES])
        return VIPSEG if panoptic else YOUTUBE_VIS
    images = content.get("images")
    if isinstance(images, list) and "categories" in content and isinstance(annotations, list):
        first = [a for a in annotations[:_PROBES] if isinstance(a, dict)]
        return None if any("segments_info" in a for a in first) else COCO
    return None


def candidates(folder: Path) -> Iterator[list[Path]]:
    """JSON files that may be annotation files, nearest first: stop at the first list that holds one."""
    near = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    yield near[:_MOST_FILES]
    far = [*folder.glob("*/*.json"), *folder.glob("*/annotations/*.json")]
    yield sorted(path for path in far if path not in near)[:_MOST_FILES]


def find_images(annotations: Path, names: Iterable[str], given: Path | None, kind: str) -> Path | None:
    """The folder below which the named files lie.

    Args:
        annotations: the annotation file; the folder is sought near it.
        names: relative names of some files, any of which will do; several endings by way of `*`.
        given: the folder that the user names, taken without looking.
        kind: what is sought, for the message.

    Returns:
        The folder that holds the most of the first few names, None if none holds any.

    Raises:
        UserError: if the given folder does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise UserError(f"{given}: no such {kind} folder.")
        return given
    probes = list(islice(names, _PROBES))
    best, most = None, 0
    for folder in _folders(annotations):
        found = sum(any(folder.glob(name)) if "*" in name else (folder / name).is_file() for name in probes)
        if found > most:
            best, most = folder, found
        if probes and found == len(probes):
            break
    return best


def _folders(annotations: Path) -> Iterator[Path]:
    """Folders near an annotation file, likely ones first."""
    roots = [annotations.parent, annotations.parent.parent]
    stem = annotations.stem
    likely = ("", "JPEGImages", "images", stem, f"{stem}/JPEGImages", "panomasksRGB", "VIPSeg_720P/images")
    seen: set[Path] = set()
    for root in roots:
        for name in likely:
            yield from _new(root / name, seen)
    for root in roots:
        below = sorted(path for path in root.iterdir() if path.is_dir())
        for folder in [
            *below,
            *(path / name for path in below for name in ("JPEGImages", "images", "panomasksRGB")),
        ]:
            yield from _new(folder, seen)


def _new(folder: Path, seen: set[Path]) -> Iterator[Path]:
    if folder not in seen and folder.is_dir():
        seen.add(folder)
        yield folder
