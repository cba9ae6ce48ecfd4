"""The objects that a stream starts from: masks of the first frame, read from an image or an annotation file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.readers.images import open_image, reading_image
from ..errors import UserError
from ..evaluation.files import read_json
from ..evaluation.tracks import check_truth, parse_truth

#: Objects of one file.  A photo instead of an id map has thousands of colours.
MAX_OBJECTS = 1000


def read_objects(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Masks of objects on the first frame of a video.

    Args:
        path: an image in which every object has a colour, palette index or number of its own and the background is 0
            or black, such as the annotations of DAVIS; or a .json file of YouTube-VIS annotations of one video.
        size: (height, width) of the video.

    Returns:
        (M, H, W) bool, in the order of the values of the image, or of the annotations.

    Raises:
        UserError: if the file cannot be read, has another size, or has no object on the first frame.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    masks = _read_annotations(path) if path.suffix.lower() == ".json" else _read_id_map(path)
    if not len(masks):
        raise UserError(f"{path}: no object on the first frame")
    if masks.shape[1:] != size:
        height, width = masks.shape[1:]
        raise UserError(
            f"{path}: {width}x{height} pixels, the video has {size[1]}x{size[0]}; "
            "draw the masks on a frame of the video"
        )
    return torch.from_numpy(masks)


def _read_id_map(path: Path) -> NDArray[np.bool_]:
    with reading_image(path), open_image(path) as image:
        pixels = np.asarray(
            image if image.mode in ("P", "L", "1") or image.mode[0] == "I" else image.convert("RGB")
        )
    ids = pixels.astype(np.int64)
    if ids.ndim == 3:
        ids = ids @ np.array([65536, 256, 1])
    values = np.unique(ids)
    values = values[values != 0]
    if len(values) > MAX_OBJECTS:
        raise UserError(
            f"{path}: {len(values)} colours; expected one per object, without blending, on black (PNG, not JPEG)"
        )
    return np.stack([ids == value for value in values]) if len(values) else np.zeros((0, *ids.shape), bool)


def _read_annotations(path: Path) -> NDArray[np.bool_]:
    truth = read_json(path)
    check_truth(truth)
    if len(truth["videos"]) != 1:
        raise UserError(f"{path}: {len(truth['videos'])} videos; expected the annotations of one video")
    tracks: list[Any] = [track for group in parse_truth(truth).values() for track in group if not track.crowd]
    rles = [dict(track.masks.rles[0]) for track in tracks if len(track.masks) and track.masks.areas[0]]
    if len({tuple(rle["size"]) for rle in rles}) > 1:
        raise UserError(f"{path}: masks of several sizes")
    decoded = [np.asarray(coco_mask.decode(rle), dtype=bool) for rle in rles]
    return np.stack(decoded) if decoded else np.zeros((0, 1, 1), bool)
