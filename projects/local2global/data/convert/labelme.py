"""Folders annotated with labelme (a JSON of polygons beside each frame, `group_id` the object) as YouTube-VIS."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ...files import parse_json
from ..readers.images import image_size
from ..readers.rle import encode_mask, merge_masks, outline_counts, parse_outline
from .common import Converted, SourceVideo, Tracks, folders, images_of, write_videos

_CIRCLE_CORNERS = 64
"""Corners of the polygon that replaces a circle."""

Object = tuple[str, Any]
Size = tuple[int, int]


def convert_labelme(source: str | Path, out: str | Path, link: bool = False) -> Converted:
    """Writes `JPEGImages/` and `instances.json` of a folder of videos, or of one video's frames.

    The JSON file with a frame's name contains its shapes; a frame without one has no object.  An object is a label and
    a `group_id`; several shapes of an object in one frame are its parts.  A shape without `group_id` is the only object
    of its label.  Polygons, rectangles, circles and labelme's masks are converted; points and lines are left out.

    Args:
        source: the folder.
        out: the folder to create.
        link: link frames instead of copying them.

    Raises:
        UserError: for a file that is not labelme's, or shapes whose object is ambiguous.
    """
    root = Path(source)
    videos = [video for video in folders(root) if any(video.glob("*.json"))] if root.is_dir() else []
    videos = videos or [root]
    skipped: Counter[str] = Counter()
    classes = {name: k for k, name in enumerate(sorted(_labels(videos)), 1)}
    empty = f"{root}: no labelme JSON with a polygon in it."
    if not classes:
        raise UserError(empty)
    return write_videos(_videos(videos, classes, skipped), classes, out, link, skipped, empty)


def _videos(folders: list[Path], classes: Mapping[str, int], skipped: Counter[str]) -> Iterator[SourceVideo]:
    for folder in folders:
        images = images_of(folder)
        size = image_size(images[0])
        tracks = Tracks(len(images))
        for t, image in enumerate(images):
            for identity, mask in _masks(image.with_suffix(".json"), size, skipped).items():
                tracks.add(identity, t, mask, classes[identity[0]])
        orphans = {path.stem for path in folder.glob("*.json")} - {image.stem for image in images}
        if orphans:
            skipped["JSON files without a frame"] += len(orphans)
        yield SourceVideo(folder.resolve().name, images, size, tracks)


def _labels(videos: list[Path]) -> set[str]:
    return {
        str(shape["label"])
        for video in videos
        for path in video.glob("*.json")
        for shape in _shapes(path)
        if shape.get("shape_type", "polygon") in _DRAWN
    }


def _shapes(path: Path) -> list[dict[str, Any]]:
    content = parse_json(path.read_bytes(), path)
    try:
        shapes = content["shapes"]
        if all(isinstance(s["label"], str) and isinstance(s["points"], list) for s in shapes):
            return list(shapes)
    except (ValueError, KeyError, TypeError) as error:
        expected = 'expected "shapes" with "label" and "points", as labelme writes'
        raise UserError(f"{path}: {expected} ({error!r}).") from None
    raise UserError(f"{path}: a shape whose label is not text, or whose points are not a list.")


def _masks(path: Path, size: Size, skipped: Counter[str]) -> dict[Object, dict[str, Any]]:
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
            fix = "give each object of this label a group_id, the same in all frames"
            raise UserError(f"{path}: {both}: {fix}.")
        try:
            parts.setdefault(identity, []).append(_DRAWN[kind](shape, size))
        except (ValueError, TypeError, IndexError, OSError) as error:
            raise UserError(f'{path}: shape "{shape["label"]}": {error}.') from error
    return {
        identity: masks[0] if len(masks) == 1 else merge_masks(masks) for identity, masks in parts.items()
    }


def _polygon(points: list[Any], size: Size) -> dict[str, Any]:
    outline = parse_outline([[float(x) for point in points for x in point]], size)
    return {"size": list(size), "counts": outline_counts(outline, size)}


def _draw_polygon(shape: Mapping[str, Any], size: Size) -> dict[str, Any]:
    return _polygon(shape["points"], size)


def _draw_rectangle(shape: Mapping[str, Any], size: Size) -> dict[str, Any]:
    (x0, y0), (x1, y1) = shape["points"]
    return _polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], size)


def _draw_circle(shape: Mapping[str, Any], size: Size) -> dict[str, Any]:
    (x, y), (edge_x, edge_y) = shape["points"]
    radius = math.hypot(edge_x - x, edge_y - y)
    angles = (2 * math.pi * k / _CIRCLE_CORNERS for k in range(_CIRCLE_CORNERS))
    return _polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], size)


def _draw_mask(shape: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """A mask of labelme: a base64 PNG whose upper left corner is the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as image:
            small = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError) as error:
        raise ValueError(f"its mask is not an image ({error})") from error
    left, top = (round(float(x)) for x in shape["points"][0])
    height, width = min(small.shape[0], size[0] - top), min(small.shape[1], size[1] - left)
    if min(left, top) < 0 or min(height, width) <= 0:
        raise ValueError("its mask lies outside the frame")
    mask = np.zeros(size, dtype=np.bool_)
    mask[top : top + height, left : left + width] = small[:height, :width]
    return encode_mask(mask)


_DRAWN = {
    "polygon": _draw_polygon,
    "rectangle": _draw_rectangle,
    "circle": _draw_circle,
    "mask": _draw_mask,
}
