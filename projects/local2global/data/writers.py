"""Videos and their truth to disk, in the layouts of YouTube-VIS and of VIPSeg, one video at a time.

A folder appears only when it is whole: until then it is `<folder>.tmp`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from torch import Tensor

from ..errors import UserError
from ..results.segment_ids import Ids, box_of, count_ids, segment_id, write_ids
from .datasets import VideoDataset, VideoRecord
from .readers.json_lists import ListWriter

FORMATS = ("jpg", "png")
QUALITY = 95
"""Of JPEG frames; chroma is kept at full resolution, where thin coloured shapes would bleed."""

ImageWriter = Callable[[Path], None]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` in the end, or is removed after an error.

    Raises:
        UserError: if `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there is something already. Remove it, or choose another folder.")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_image(frame: Tensor, path: Path) -> None:
    """Writes (3, H, W) uint8 RGB as what the path's ending says."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if path.suffix == ".png":
        image.save(path, format="PNG", compress_level=1)
    else:
        image.save(path, format="JPEG", quality=QUALITY, subsampling=0)


class YouTubeVisWriter:
    """`JPEGImages/<video>/<frame>` and `instances.json` below a folder, video by video.

    Args:
        folder: where; it exists.
        classes: {id, name} of every class, as `categories` of the file.
    """

    def __init__(self, folder: Path, classes: Sequence[Mapping[str, Any]]) -> None:
        self._images = folder / "JPEGImages"
        self._classes = [dict(c) for c in classes]
        self._videos: list[dict[str, Any]] = []
        self._file = ListWriter(folder / "instances.json", "annotations")

    def add(
        self,
        name: str,
        size: tuple[int, int],
        frames: Iterable[tuple[str, ImageWriter]],
        tracks: Iterable[Mapping[str, Any]],
    ) -> None:
        """Appends one video.

        Args:
            name: its folder.
            size: (height, width) of its frames.
            frames: for each frame its file name and what writes it.
            tracks: annotations, `segmentations` (a list of RLEs or None), `category_id` and perhaps `iscrowd` and
                `id`; what else an annotation holds is made here.
        """
        folder = self._images / name
        folder.mkdir(parents=True)
        files = []
        for file, write in frames:
            write(folder / file)
            files.append(f"{name}/{file}")
        identity = len(self._videos) + 1
        height, width = size
        shape = {"height": height, "width": width, "length": len(files)}
        self._videos.append({"id": identity, "name": name, **shape, "file_names": files})
        for track in tracks:
            self._file.write(self._annotation(track, identity, shape))

    def _annotation(self, track: Mapping[str, Any], video: int, shape: Mapping[str, int]) -> dict[str, Any]:
        masks = track["segmentations"]
        if len(masks) != shape["length"]:
            raise ValueError(f"{len(masks)} segmentations for {shape['length']} frames")
        return {
            "id": self._file.count + 1,
            "video_id": video,
            "category_id": track["category_id"],
            "iscrowd": int(track.get("iscrowd", 0)),
            **shape,
            "segmentations": masks,
            "areas": [None if m is None else int(rle.area(m)) for m in masks],
            "bboxes": [None if m is None else [float(x) for x in rle.toBbox(m)] for m in masks],
        }

    def close(self) -> None:
        """Finishes the annotation file."""
        self._file.close({"videos": self._videos, "categories": self._classes})

    def __enter__(self) -> YouTubeVisWriter:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Finishes the file, or drops it after an error."""
        if kind is None:
            self.close()
        else:
            self._file.__exit__(kind, *rest)


def write_youtube_vis(
    records: Iterable[VideoRecord],
    classes: Sequence[Mapping[str, Any]],
    out: str | Path,
    image_format: str = "jpg",
) -> Path:
    """Writes `JPEGImages/<video>/00000.jpg` and `instances.json`; instances that are never seen are left out.

    Args:
        records: the videos; they are read one after another, and ids are given anew from 1.
        classes: the class list that the records' labels point into.
        out: the folder to make.
        image_format: "jpg", or "png" for exactly the records' pixels.

    Returns:
        The annotation file.

    Raises:
        UserError: if `out` is not free, or the format is unknown.
    """
    _check_format(image_format)
    with new_folder(Path(out)) as folder, YouTubeVisWriter(folder, classes) as writer:
        for record in records:
            truth = VideoDataset([record], [dict(c) for c in classes]).truth()
            tracks = [a for a in truth["annotations"] if any(a["segmentations"])]
            writer.add(record.name, record.size, _frames(record, image_format), tracks)
    return Path(out) / "instances.json"


def write_vipseg(
    records: Iterable[VideoRecord],
    classes: Sequence[Mapping[str, Any]],
    out: str | Path,
    image_format: str = "jpg",
    split: str | None = None,
    background: str = "background",
) -> Path:
    """Writes `images/`, `panomasksRGB/` and `panoptic_gt_VIPSeg_<split>.json`.

    Instances of one stuff class (`isthing` 0) share a segment; where instances overlap, the first one is in front.
    If no class is stuff, every pixel without an instance becomes the stuff class `background`, added to the list;
    else it is void.

    Args:
        records: the videos; they are read one after another.
        classes: the class list that the records' labels point into; a class without `isthing` is a thing.
        out: the folder to make.
        image_format: "jpg", or "png" for exactly the records' pixels.
        split: the last part of the file's name; None leaves it out.
        background: name of the class that is added.

    Returns:
        The annotation file.

    Raises:
        UserError: if `out` is not free, or the format is unknown.
    """
    _check_format(image_format)
    listed = [{"id": c["id"], "name": c["name"], "isthing": int(c.get("isthing", 1))} for c in classes]
    fill = None
    if all(c["isthing"] for c in listed):
        fill = 1 + max(int(c["id"]) for c in listed)
        listed.append({"id": fill, "name": background, "isthing": 0})
    file = f"panoptic_gt_VIPSeg{f'_{split}' if split else ''}.json"
    videos = []
    with new_folder(Path(out)) as folder, ListWriter(folder / file, "annotations") as writer:
        for record in records:
            images, annotations = _write_panoptic(record, listed, fill, folder, image_format)
            videos.append({"video_id": record.name, "images": images})
            writer.write({"video_id": record.name, "annotations": annotations})
        writer.close({"videos": videos, "categories": listed})
    return Path(out) / file


def describe_segments(ids: Ids, categories: Mapping[int, int]) -> list[dict[str, Any]]:
    """`segments_info` of one map: id, category_id, iscrowd, area and bbox (x, y, w, h) of every painted id but 0.

    Args:
        ids: (H, W) segment ids.
        categories: the category id of each segment id, in the order of the list: stuff first, as STQ takes a thing
            that a video lists first for a crowd.
    """
    areas = count_ids(ids)
    return [
        {
            "id": identity,
            "category_id": category,
            "iscrowd": 0,
            "area": areas[identity],
            "bbox": box_of(ids == identity),
        }
        for identity, category in categories.items()
        if identity in areas
    ]


def _write_panoptic(
    record: VideoRecord,
    classes: Sequence[Mapping[str, Any]],
    fill: int | None,
    folder: Path,
    image_format: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One video's images and maps; the entries of `images` and of `annotations`."""
    pixels, maps = (folder / kind / record.name for kind in ("images", "panomasksRGB"))
    pixels.mkdir(parents=True)
    maps.mkdir(parents=True)
    labels = [classes[k] for k in record.labels.tolist()]
    # Stuff is numbered by class, things by row behind them.
    numbers = [
        len(classes) + 1 + row if c["isthing"] else 1 + classes.index(c) for row, c in enumerate(labels)
    ]
    void = segment_id(len(classes)) if fill is not None else 0
    categories = {} if fill is None else {void: fill}
    for number, c in sorted(zip(numbers, labels, strict=True), key=lambda pair: pair[0]):
        categories[segment_id(number)] = int(c["id"])
    height, width = record.size
    images, annotations = [], []
    for t, (file, write) in enumerate(_frames(record, image_format, digits=8)):
        write(pixels / file)
        ids = np.full((height, width), void, dtype=np.int32)
        masks = record.masks(t).numpy()
        for row in range(len(masks) - 1, -1, -1):
            ids[masks[row]] = segment_id(numbers[row])
        entry = {"id": f"{t:08d}", "width": width, "height": height, "file_name": f"{t:08d}.png"}
        write_ids(ids, maps / f"{t:08d}.png")
        images.append(entry)
        segments = describe_segments(ids, categories)
        annotations.append(
            {"image_id": entry["id"], "file_name": entry["file_name"], "segments_info": segments}
        )
    return images, annotations


def _check_format(image_format: str) -> None:
    if image_format not in FORMATS:
        raise UserError(f'no image format "{image_format}". Choose one of: {", ".join(FORMATS)}.')


def _frames(record: VideoRecord, image_format: str, digits: int = 5) -> Iterator[tuple[str, ImageWriter]]:
    def writer(t: int) -> ImageWriter:
        return lambda path: save_image(record.frame(t), path)

    return ((f"{t:0{digits}d}.{image_format}", writer(t)) for t in range(record.length))
