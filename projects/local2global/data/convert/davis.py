"""DAVIS and YouTube-VOS folders (a palette PNG per frame, whose index is the object) as YouTube-VIS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...files import parse_json
from ..readers.images import image_size, open_image, reading_image
from .common import (
    Converted,
    SourceVideo,
    Tracks,
    folder_of,
    folders,
    match_frames,
    natural,
    read_labels,
    split_labels,
    write_videos,
)

VOID = 255
"""Palette index of void pixels, which belong to no object."""


def convert_davis(source: str | Path, out: str | Path, link: bool = False) -> Converted:
    """Writes `JPEGImages/` and `instances.json` of `source/{JPEGImages,Annotations}[/480p]/<video>/`.

    A palette index is one object throughout a video; grey masks (DAVIS 2016) contain one object.  Frames without a
    PNG are left out, because YouTube-VOS annotates every fifth frame.  Classes are those of YouTube-VOS's `meta.json`
    if it exists; otherwise all objects are of the class "object".

    Args:
        source: the folder.
        out: the folder to create.
        link: link frames instead of copying them.

    Raises:
        UserError: if the folder has another layout, or a mask does not have its frame's size.
    """
    root = Path(source)
    frames, masks = (_resolution(folder_of(root, name)) for name in ("JPEGImages", "Annotations"))
    names = _object_names(root)
    distinct = sorted({name for video in names.values() for name in video.values()} or {"object"})
    classes = {name: k for k, name in enumerate(distinct, 1)}
    skipped: Counter[str] = Counter()
    unmasked = {video.name for video in folders(frames)} - {video.name for video in folders(masks)}
    if unmasked:
        skipped["videos without a mask"] += len(unmasked)
    videos = _videos(frames, masks, names, classes, skipped)
    return write_videos(videos, classes, out, link, skipped, f"{masks}: no folder of PNG masks in it.")


def _resolution(folder: Path) -> Path:
    return next((folder / name for name in ("480p", "Full-Resolution") if (folder / name).is_dir()), folder)


def _object_names(root: Path) -> dict[str, dict[int, str]]:
    """The class name of each object of each video, from YouTube-VOS's meta.json."""
    path = root / "meta.json"
    if not path.is_file():
        return {}
    content = parse_json(path.read_bytes(), path)
    try:
        return {
            name: {int(key): str(entry["category"]) for key, entry in video["objects"].items()}
            for name, video in content["videos"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = 'expected "videos" of "objects" with "category", as in YouTube-VOS'
        raise UserError(f"{path}: {expected} ({error!r}).") from None


def _videos(
    frames: Path,
    masks: Path,
    names: Mapping[str, Mapping[int, str]],
    classes: Mapping[str, int],
    skipped: Counter[str],
) -> Iterator[SourceVideo]:
    for video in folders(masks):
        files = sorted(video.glob("*.png"), key=natural)
        if not files:
            skipped["videos without a mask"] += 1
            continue
        images = match_frames(files, frames / video.name, skipped)
        size = image_size(images[0])
        tracks = _tracks(files, size, names.get(video.name, {}), classes, skipped)
        yield SourceVideo(video.name, images, size, tracks)


def _tracks(
    files: list[Path],
    size: tuple[int, int],
    names: Mapping[int, str],
    classes: Mapping[str, int],
    skipped: Counter[str],
) -> Tracks:
    tracks = Tracks(len(files))
    for t, path in enumerate(files):
        for identity, mask in split_labels(_read_objects(path), size, path):
            if identity == VOID:
                skipped["frames with void pixels"] += 1
                continue
            name = names.get(identity, "object")
            if name not in classes:
                raise UserError(f"{path}: object {identity} has no category in meta.json.")
            tracks.add(identity, t, mask, classes[name])
    return tracks


def _read_objects(path: Path) -> NDArray[np.int64]:
    """(H, W) object numbers of a mask: palette indices, or 1 where a grey or two-tone image is not black."""
    with reading_image(path), open_image(path) as image:
        mode = image.mode
        if mode in ("RGB", "RGBA"):
            # Some two-tone masks of DAVIS 2016 were published as colour images.
            return (np.asarray(image.convert("L")) > 127).astype(np.int64)
    labels = read_labels(path)
    return labels if mode == "P" else (labels > 0).astype(np.int64)
