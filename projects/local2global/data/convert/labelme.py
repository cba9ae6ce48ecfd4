"""Folders drawn in labelme (a JSON of polygons beside each frame, `group_id` the object) as YouTube-VIS."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ...errors import UserError
from ..writers import YouTubeVisWriter, new_folder
from .common import Converted, Tracks, carry, encode, folders, image_size, images_of

_CORNERS = 64
"""Of the polygon that stands for a circle."""

Object = tuple[str, Any]


def convert_labelme(source: str | Path, out: str | Path, link: bool = False) -> Converted:
    """Writes `JPEGImages/` and `instances.json` of a folder of videos, or of one video's frames.

    A frame's shapes stand in the JSON of the same name; a frame without one shows nothing.  An object is a label and
    a `group_id`; shapes of one object in one frame are its parts.  A shape without `group_id` is the only object of
    its label.  Polygons, rectangles, circles and labelme's masks count; points and lines are left out.

    Args:
        source: the folder.
        out: the folder to make.
        link: link frames instead of copying them.

    Raises:
        UserError: for a file that is not labelme's, or shapes that leave open who is who.
    """
    root = Path(source)
    videos = [video for video in folders(root) if any(video.glob("*.json"))] if root.is_dir() else []
    videos = videos or [root]
    skipped: Counter[str] = Counter()
    ids = {name: k for k, name in enumerate(sorted(_labels(videos)), 1)}
    if not ids:
        raise UserError(f"{root}: no labelme JSON with a polygon in it.")
    frames = instances = 0
    classes = [{"id": k, "name": name} for name, k in ids.items()]
    with new_folder(Path(out)) as folder, YouTubeVisWriter(folder, classes) as writer:
        for video in videos:
            images = images_of(video)
            size = image_size(images[0])
            tracks = Tracks(len(images))
            for t, image in enumerate(images):
                for identity, mask in _masks(image.with_suffix(".json"), size, skipped).items():
                    tracks.add(identity, t, mask, ids[identity[0]])
            writer.add(video.resolve().name, size, carry(images, link), tracks.annotations())
            orphans = {path.stem for path in video.glob("*.json")} - {image.stem for image in images}
            if orphans:
                skipped["JSON files without a frame"] += len(orphans)
            frames, instances = frames + len(images), instances + len(tracks)
    return Converted((Path(out) / "instances.json",), len(videos), frames, instances, skipped)


def _labels(videos: list[Path]) -> set[str]:
    return {
        str(shape["label"])
        for video in videos
        for path in video.glob("*.json")
        for shape in _shapes(path)
        if shape.get("shape_type", "polygon") in _DRAWN
    }


def _shapes(path: Path) -> list[dict[str, Any]]:
    try:
        shapes = json.loads(path.read_bytes())["shapes"]
        if all(isinstance(s["label"], str) and isinstance(s["points"], list) for s in shapes):
            return list(shapes)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: not labelme\'s: no "shapes" with "label" and "points" ({error!r}).'
        ) from None
    raise UserError(f"{path}: a shape whose label is no text, or whose points are no list.")


def _masks(path: Path, size: tuple[int, int], skipped: Counter[str]) -> dict[Object, dict[str, Any]]:
    """The RLE of each object of a frame."""
    if not path.is_file():
        return {}
    parts: dict[Object, list[dict[str, Any]]] = {}
    for shape in _shapes(path):
        kind = shape.get("shape_type", "polygon")
        if kind not in _DRAWN:
            skipped[f"shapes of type {kind}"] += 1
            continue
        identity = (shape["label"], shape.get("group_id"))
        if identity[1] is None and identity in parts:
            both = f'two shapes "{identity[0]}" without group_id'
            raise UserError(
                f"{path}: {both}: give each object of this label a group_id, the same in all frames."
            )
        try:
            parts.setdefault(identity, []).append(_DRAWN[kind](shape, size))
        except (ValueError, TypeError, IndexError, OSError) as error:
            raise UserError(f'{path}: shape "{shape["label"]}": {error}.') from error
    return {identity: _merged(masks) for identity, masks in parts.items()}


def _merged(masks: list[dict[str, Any]]) -> dict[str, Any]:
    if len(masks) == 1:
        return masks[0]
    merged = rle.merge(masks)
    return {"size": [int(n) for n in merged["size"]], "counts": merged["counts"].decode("ascii")}


def _polygon(points: Iterator[tuple[float, float]] | list[Any], size: tuple[int, int]) -> dict[str, Any]:
    flat = [float(x) for point in points for x in point]
    if len(flat) < 6 or not all(map(math.isfinite, flat)):
        raise ValueError("a polygon needs three points or more")
    merged = rle.merge(rle.frPyObjects([flat], *size))
    return {"size": list(size), "counts": merged["counts"].decode("ascii")}


def _draw_polygon(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    return _polygon(shape["points"], size)


def _draw_rectangle(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    (x0, y0), (x1, y1) = shape["points"]
    return _polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], size)


def _draw_circle(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    (x, y), (edge_x, edge_y) = shape["points"]
    radius = math.hypot(edge_x - x, edge_y - y)
    turns = (2 * math.pi * k / _CORNERS for k in range(_CORNERS))
    return _polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns], size)


def _draw_mask(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A mask of labelme's own: a PNG as text, its upper left corner the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as image:
            small = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError) as error:
        raise ValueError(f"its mask is no image ({error})") from error
    left, top = (round(float(x)) for x in shape["points"][0])
    whole = np.zeros(size, dtype=np.bool_)
    height, width = min(small.shape[0], size[0] - top), min(small.shape[1], size[1] - left)
    if min(left, top) < 0 or min(height, width) <= 0:
        raise ValueError("its mask lies outside the frame")
    whole[top : top + height, left : left + width] = small[:height, :width]
    return encode(whole)


_DRAWN = {
    "polygon": _draw_polygon,
    "rectangle": _draw_rectangle,
    "circle": _draw_circle,
    "mask": _draw_mask,
}
