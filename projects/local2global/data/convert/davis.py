"""DAVIS and YouTube-VOS folders (a palette PNG per frame, its index the object) as YouTube-VIS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ..writers import YouTubeVisWriter, new_folder
from .common import (
    Converted,
    Tracks,
    carry,
    encode,
    folder_of,
    folders,
    image_size,
    images_of,
    natural,
    read_labels,
    readable,
)

VOID = 255
"""Palette index of pixels that belong to nobody known; no object."""


def convert_davis(source: str | Path, out: str | Path, link: bool = False) -> Converted:
    """Writes `JPEGImages/` and `instances.json` of `source/{JPEGImages,Annotations}[/480p]/<video>/`.

    A palette index is one object throughout a video; grey masks (DAVIS 2016) hold one object.  Frames without a
    PNG are left out, as YouTube-VOS annotates every fifth.  Classes are those of YouTube-VOS's `meta.json` where
    there is one, else all objects are of the class "object".

    Args:
        source: the folder.
        out: the folder to make.
        link: link frames instead of copying them.

    Raises:
        UserError: if the folder is another, or a mask has not its frame's size.
    """
    root = Path(source)
    frames, masks = (_resolution(folder_of(root, name)) for name in ("JPEGImages", "Annotations"))
    classes = _classes(root)
    names = sorted({name for video in classes.values() for name in video.values()} or {"object"})
    ids = {name: k for k, name in enumerate(names, 1)}
    skipped: Counter[str] = Counter()
    videos = total = instances = 0
    undrawn = {video.name for video in folders(frames)} - {video.name for video in folders(masks)}
    if undrawn:
        skipped["videos without a mask"] += len(undrawn)
    with new_folder(Path(out)) as folder:
        with YouTubeVisWriter(folder, [{"id": k, "name": name} for name, k in ids.items()]) as writer:
            for video in folders(masks):
                drawn = sorted(video.glob("*.png"), key=natural)
                if not drawn:
                    skipped["videos without a mask"] += 1
                    continue
                images = _frames_of(frames / video.name, drawn, skipped)
                size = image_size(images[0])
                tracks = _tracks(drawn, size, classes.get(video.name, {}), ids, skipped)
                writer.add(video.name, size, carry(images, link), tracks.annotations())
                videos, total, instances = videos + 1, total + len(images), instances + len(tracks)
        if not videos:
            raise UserError(f"{masks}: no folder of PNG masks in it.")
    return Converted((Path(out) / "instances.json",), videos, total, instances, skipped)


def _resolution(folder: Path) -> Path:
    return next((folder / name for name in ("480p", "Full-Resolution") if (folder / name).is_dir()), folder)


def _classes(root: Path) -> dict[str, dict[int, str]]:
    """The class name of each object of each video, from YouTube-VOS's meta.json."""
    path = root / "meta.json"
    if not path.is_file():
        return {}
    try:
        videos = json.loads(path.read_bytes())["videos"]
        return {
            name: {int(key): str(entry["category"]) for key, entry in video["objects"].items()}
            for name, video in videos.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: not like YouTube-VOS\'s ({error!r}): "videos" of "objects" with "category".'
        ) from None


def _frames_of(folder: Path, masks: list[Path], skipped: Counter[str]) -> list[Path]:
    by_stem = {image.stem: image for image in images_of(folder)}
    for mask in masks:
        if mask.stem not in by_stem:
            raise UserError(f"{mask}: no frame {mask.stem} in {folder}.")
    if len(by_stem) > len(masks):
        skipped["frames without a mask file"] += len(by_stem) - len(masks)
    return [by_stem[mask.stem] for mask in masks]


def _tracks(
    masks: list[Path],
    size: tuple[int, int],
    classes: Mapping[int, str],
    ids: Mapping[str, int],
    skipped: Counter[str],
) -> Tracks:
    tracks = Tracks(len(masks))
    for t, path in enumerate(masks):
        labels = _objects(path)
        if labels.shape != size:
            wrong = f"{labels.shape[0]}x{labels.shape[1]}"
            raise UserError(f"{path}: a mask of {wrong} for frames of {size[0]}x{size[1]}.")
        for identity in np.unique(labels).tolist():
            if identity == VOID:
                skipped["frames with void pixels"] += 1
            elif identity:
                name = classes.get(identity, "object") if classes else "object"
                if name not in ids:
                    raise UserError(f"{path}: object {identity} has no category in meta.json.")
                tracks.add(identity, t, encode(labels == identity), ids[name])
    return tracks


def _objects(path: Path) -> Any:
    """(H, W) object numbers of a mask: palette indices, or 1 where a grey or two-tone image is not black."""
    with readable(path), Image.open(path) as image:
        mode = image.mode
        if mode in ("RGB", "RGBA"):
            # DAVIS 2016 was published with some of its two-tone masks stored in colour.
            return (np.asarray(image.convert("L")) > 127).astype(np.int64)
    labels = read_labels(path)
    return labels if mode == "P" else (labels > 0).astype(np.int64)
