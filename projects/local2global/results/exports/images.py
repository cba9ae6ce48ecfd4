"""Images of the objects: id maps, binary masks, and crops of the frames with the mask as alpha channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ...errors import UserError
from ...files import atomic_folder
from ..colours import colour
from ..record import Recording

_MAX_PALETTE = 254  # DAVIS reserves palette index 255 for void pixels
_COMPRESSION = 3  # of PNG; higher levels take longer and save little on masks


def write_id_maps(path: Path, recording: Recording) -> None:
    """Writes one PNG per frame whose pixels are id + 1, and 0 where there is no object.

    Where masks overlap, the object with the higher score is in front.  The PNGs have a palette, as those of DAVIS, with
    the colours of the video; ids above 253 need 16-bit grey PNGs.
    """
    size = (recording.video["height"], recording.video["width"])
    large = max(recording.tracks.tracks, default=0) + 1 > _MAX_PALETTE
    palette = bytes((0, 0, 0)) + b"".join(bytes(colour(identity)) for identity in range(255))
    with atomic_folder(path) as folder:
        for stem, line in _frames(recording):
            values = {entry["id"]: entry["id"] + 1 for entry in line["objects"]}
            image = Image.fromarray(
                label_map(line["objects"], values, size, np.uint16 if large else np.uint8)
            )
            if not large:
                image.putpalette(palette)
            save_png(image, folder / f"{stem}.png")


def write_masks(path: Path, recording: Recording) -> None:
    """Writes `<id>/<frame>.png`, white on black, for every frame on which the object was reported."""
    with atomic_folder(path) as folder:
        for stem, line in _frames(recording):
            for entry in line["objects"]:
                save_png(
                    Image.fromarray(_decode(entry) * np.uint8(255)),
                    _object_folder(folder, entry) / f"{stem}.png",
                )


def write_crops(path: Path, recording: Recording) -> None:
    """Writes `<id>/<frame>.png`: the box of the object from the frame, RGBA, transparent outside of its mask.

    Raises:
        UserError: if the frames of the video cannot be read again, or are not those of the record.
    """
    if recording.frames is None:
        raise UserError(
            f"{path}: crops need the frames of the video; add it: l2g predict INPUT --finish FOLDER --save crops"
        )
    with atomic_folder(path) as folder:
        frames = recording.frames()
        for stem, line in _frames(recording):
            frame = next(frames, None)
            size = (3, recording.video["height"], recording.video["width"])
            if frame is None or tuple(frame.shape) != size:
                problem = (
                    "the video ends" if frame is None else f"the frames are {frame.shape[2]}x{frame.shape[1]}"
                )
                raise UserError(
                    f"{path}: {problem} at frame {line['index']}: this is not the video of the record"
                )
            pixels = frame.permute(1, 2, 0).numpy()
            for entry in line["objects"]:
                left, top, width, height = (round(x) for x in entry["bbox"])
                window = slice(top, top + height), slice(left, left + width)
                alpha = _decode(entry)[window] * np.uint8(255)
                rgba = np.dstack([pixels[window], alpha])
                save_png(Image.fromarray(rgba), _object_folder(folder, entry) / f"{stem}.png")


def label_map(
    objects: list[dict[str, Any]],
    values: dict[int, int],
    size: tuple[int, int],
    dtype: type[np.unsignedinteger[Any]],
) -> NDArray[Any]:
    """(H, W) the value of the object at every pixel, by the highest score where masks overlap, or 0.

    Args:
        objects: the objects of a frame of the record.
        values: the value of each id.
        size: (H, W).
        dtype: of the map.
    """
    labels = np.zeros(size, dtype)
    for entry in sorted(objects, key=lambda entry: float(entry["score"])):
        np.copyto(labels, values[entry["id"]], where=_decode(entry).view(np.bool_), casting="unsafe")
    return labels


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG."""
    image.save(path, format="PNG", compress_level=_COMPRESSION)


def _frames(recording: Recording) -> Iterator[tuple[str, dict[str, Any]]]:
    return zip(recording.stems, recording.lines(), strict=True)


def _object_folder(folder: Path, entry: dict[str, Any]) -> Path:
    path = folder / str(entry["id"])
    path.mkdir(exist_ok=True)
    return path


def _decode(entry: dict[str, Any]) -> NDArray[np.uint8]:
    """(H, W) mask of zeros and ones.

    Raises:
        UserError: if the run lengths do not fit the size.
    """
    try:
        mask: NDArray[np.uint8] = coco_mask.decode(entry["segmentation"])
    except ValueError as error:
        raise UserError(f"frames.jsonl: object {entry['id']} has an invalid mask ({error})") from error
    return mask
