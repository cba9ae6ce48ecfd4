"""Writes videos with their ground truth in the layouts of YouTube-VIS and VIPSeg, one video at a time.

A folder appears only when it is complete: until then it is `<folder>.l2g-tmp`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError, make_folder
from ..files import PARTIAL, atomic_folder, stays_inside, waiting_lock, write_text
from ..results.segment_ids import Ids, box_of, count_ids, segment_id, write_ids
from .datasets import VideoDataset, VideoRecord, annotation_entry

FORMATS = ("jpg", "png")
QUALITY = 95
"""JPEG quality; chroma is not subsampled, because subsampling blurs thin coloured shapes."""

ImageWriter = Callable[[Path], None]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` at the end, or removed after an error.

    Raises:
        UserError: if `out` exists and is not an empty folder, or another process writes it.
    """

    def refuse() -> None:
        raise UserError(f"{out}: another process writes this folder. Choose another folder.")

    _require_new(out)
    make_folder(out.parent, "another path")
    with waiting_lock(out.with_name(f"{out.name}.lock{PARTIAL}"), refuse):
        _require_new(out)  # the other process may have finished
        with atomic_folder(out) as temporary:
            yield temporary


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists. Remove it, or choose another folder.")


def write_json(content: Any, path: Path) -> None:
    """Writes a JSON file, which appears only when it is complete."""
    write_text(path, json.dumps(content))


def save_image(frame: Tensor, path: Path) -> None:
    """Writes (3, H, W) uint8 RGB in the format of the path's suffix."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if path.suffix == ".png":
        image.save(path, format="PNG", compress_level=1)
    else:
        image.save(path, format="JPEG", quality=QUALITY, subsampling=0)


class YouTubeVisWriter:
    """Writes `JPEGImages/<video>/<frame>` video by video, and finally `instances.json`.

    Args:
        folder: an existing folder.
        classes: {id, name} of every class, the `categories` of the file.

    Attributes:
        videos: the entries of the videos written so far.
        annotations: the annotations written so far.
    """

    def __init__(self, folder: Path, classes: Sequence[Mapping[str, Any]]) -> None:
        self._folder = folder
        self._classes = [dict(c) for c in classes]
        self.videos: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

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
            frames: for each frame its file name and a function that writes it.
            tracks: {segmentations, category_id, iscrowd (default 0)} of each object; `segmentations` is a list of RLEs
                or None.  Other keys are ignored, and ids are renumbered from 1.
        """
        if not stays_inside(name):
            raise UserError(f"{name}: a video's name that leads out of its folder. Rename the video.")
        folder = self._folder / "JPEGImages" / name
        folder.mkdir(parents=True)
        files = []
        for file, write in frames:
            write(folder / file)
            files.append(f"{name}/{file}")
        video_id = len(self.videos) + 1
        shape = {"height": size[0], "width": size[1], "length": len(files)}
        self.videos.append({"id": video_id, "name": name, **shape, "file_names": files})
        for track in tracks:
            masks = track["segmentations"]
            if len(masks) != len(files):
                raise ValueError(f"{len(masks)} segmentations for {len(files)} frames")
            identity, crowd = len(self.annotations) + 1, int(track.get("iscrowd", 0))
            entry = annotation_entry(identity, video_id, track["category_id"], size, masks, crowd)
            self.annotations.append(entry)

    def close(self) -> None:
        """Writes the annotation file."""
        content = {"annotations": self.annotations, "videos": self.videos, "categories": self._classes}
        write_json(content, self._folder / "instances.json")


def write_youtube_vis(
    records: Iterable[VideoRecord],
    classes: Sequence[Mapping[str, Any]],
    out: str | Path,
    image_format: str = "jpg",
) -> Path:
    """Writes `JPEGImages/<video>/00000.jpg` and `instances.json`; instances that are never visible are left out.

    Args:
        records: the videos, read one after another; ids are renumbered from 1.
        classes: the class list of the records' labels.
        out: the folder to create.
        image_format: "jpg", or "png" for lossless frames.

    Returns:
        The annotation file.

    Raises:
        UserError: if `out` already exists, or the format is unknown.
    """
    _check_format(image_format)
    with new_folder(Path(out)) as folder:
        writer = YouTubeVisWriter(folder, classes)
        for record in records:
            truth = VideoDataset([record], [dict(c) for c in classes]).truth()
            tracks = [a for a in truth["annotations"] if any(a["segmentations"])]
            writer.add(record.name, record.size, _frames(record, image_format), tracks)
        writer.close()
    return Path(out) / "instances.json"


def write_vipseg(
    records: Iterable[VideoRecord],
    classes: Sequence[Mapping[str, Any]],
    out: str | Path,
    image_format: str = "jpg",
    split: str | None = None,
) -> Path:
    """Writes `images/`, `panomasksRGB/` and `panoptic_gt_VIPSeg_<split>.json`.

    Instances of one stuff class (`isthing` 0) share a segment.  Where they overlap, the first instance is in front.
    If no class is stuff, pixels without an instance become the stuff class `background`, which is added to the list;
    otherwise they are void.

    Args:
        records: the videos, read one after another.
        classes: the class list of the records' labels; a class without `isthing` is a thing.
        out: the folder to create.
        image_format: "jpg", or "png" for lossless frames.
        split: the last part of the file's name; None leaves it out.

    Returns:
        The annotation file.

    Raises:
        UserError: if `out` already exists, or the format is unknown.
    """
    _check_format(image_format)
    listed = [{"id": c["id"], "name": c["name"], "isthing": int(c.get("isthing", 1))} for c in classes]
    fill = None
    if all(c["isthing"] for c in listed):
        fill = 1 + max(int(c["id"]) for c in listed)
        listed.append({"id": fill, "name": "background", "isthing": 0})
    file = vipseg_file(split)
    videos, annotations = [], []
    with new_folder(Path(out)) as folder:
        for record in records:
            images, frames = _write_panoptic(record, listed, fill, folder, image_format)
            videos.append({"video_id": record.name, "images": images})
            annotations.append({"video_id": record.name, "annotations": frames})
        content = {"annotations": annotations, "videos": videos, "categories": listed}
        write_json(content, folder / file)
    return Path(out) / file


def vipseg_file(split: str | None) -> str:
    """The name of VIPSeg's annotation file of a split."""
    return f"panoptic_gt_VIPSeg{f'_{split}' if split else ''}.json"


def describe_segments(ids: Ids, categories: Mapping[int, int]) -> list[dict[str, Any]]:
    """The `segments_info` of a map: id, category_id, iscrowd, area and bbox (x, y, w, h) of every painted id but 0.

    Args:
        ids: (H, W) segment ids.
        categories: the category id of each segment id, in the order of the list.  Stuff comes first, because STQ
            treats a thing that a video lists first as a crowd.
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
    """Writes one video's images and maps; returns its entries of `images` and of `annotations`."""
    pixels, maps = (folder / kind / record.name for kind in ("images", "panomasksRGB"))
    pixels.mkdir(parents=True)
    maps.mkdir(parents=True)
    labels = [classes[k] for k in record.labels.tolist()]
    # Stuff is numbered by class, things by row after the stuff.
    numbers = [
        len(classes) + 1 + row if c["isthing"] else 1 + classes.index(c) for row, c in enumerate(labels)
    ]
    void = segment_id(len(classes)) if fill is not None else 0
    categories = {} if fill is None else {void: fill}
    for number, c in sorted(zip(numbers, labels, strict=True), key=lambda pair: pair[0]):
        categories[segment_id(number)] = int(c["id"])
    images, annotations = [], []
    for t, (file, write) in enumerate(_frames(record, image_format, digits=8)):
        write(pixels / file)
        ids = np.full(record.size, void, dtype=np.int32)
        masks = record.masks(t).numpy()
        for row in range(len(masks) - 1, -1, -1):
            ids[masks[row]] = segment_id(numbers[row])
        name = f"{t:08d}"
        write_ids(ids, maps / f"{name}.png")
        size = {"width": record.size[1], "height": record.size[0]}
        images.append({"id": name, **size, "file_name": f"{name}.png"})
        segments = describe_segments(ids, categories)
        annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
    return images, annotations


def _check_format(image_format: str) -> None:
    if image_format not in FORMATS:
        raise UserError(f'no image format "{image_format}". Choose one of: {", ".join(FORMATS)}.')


def _frames(record: VideoRecord, image_format: str, digits: int = 5) -> Iterator[tuple[str, ImageWriter]]:
    def writer(t: int) -> ImageWriter:
        return lambda path: save_image(record.frame(t), path)

    return ((f"{t:0{digits}d}.{image_format}", writer(t)) for t in range(record.length))
