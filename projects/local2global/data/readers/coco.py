"""Images as videos of one frame: the reader of files in COCO's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from ...errors import UserError
from ..datasets import VideoDataset, VideoRecord, read_grid, read_sized
from .annotations import ImageAnnotationFile, check_classes
from .rle import compress

#: A mask as it is kept: compressed run lengths, or polygons as the bytes of their float64 coordinates.
Outline = str | tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """A `VideoRecord` of one image; polygons become pixels when asked for.

    Attributes:
        id: the image's id.
        name: its file name without the ending.
        size: (height, width).
        file: the image file.
        instances: (annotation id, label, outline) of each instance.
    """

    id: int
    name: str
    size: tuple[int, int]
    file: Path
    instances: tuple[tuple[int, int, Outline], ...]

    @property
    def length(self) -> int:
        """One frame."""
        return 1

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return torch.tensor([label for _, label, _ in self.instances], dtype=torch.int64)

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return torch.tensor([identity for identity, _, _ in self.instances], dtype=torch.int64)

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB.

        Raises:
            UserError: if the file cannot be read or has not the size that the annotations say.
        """
        self._check(t)
        return read_sized(self.file, self.size).contiguous()

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8, or the whole where the file cannot be read smaller."""
        self._check(t)
        return read_sized(self.file, self.size, factor)

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool."""
        self._check(t)
        masks = torch.zeros((len(self.instances), *self.size), dtype=torch.bool)
        for mask, counts in zip(masks, self._counts(self.instances), strict=True):
            mask.copy_(torch.from_numpy(rle.decode({"size": list(self.size), "counts": counts})))
        return masks

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the pixels at some rows and columns, of the wanted instances."""
        self._check(t)
        kept = [self.instances[i] for i in np.flatnonzero(wanted)]
        return read_grid(self.size, rows, columns, self._counts(kept))

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) all of them; one whose polygon encloses no pixel is found out when it is drawn."""
        self._check(t)
        return np.ones(len(self.instances), dtype=np.bool_)

    def _counts(self, instances: Sequence[tuple[int, int, Outline]]) -> list[str]:
        height, width = self.size
        counts = []
        for _, _, outline in instances:
            if not isinstance(outline, str):
                polygons = [np.frombuffer(coordinates) for coordinates in outline]
                outline = rle.merge(rle.frPyObjects(polygons, height, width))["counts"].decode("ascii")
            counts.append(outline)
        return counts

    def _check(self, t: int) -> None:
        if t:
            raise IndexError(f"{self.name} is one image, asked for frame {t}")


@dataclass(frozen=True)
class AnnotatedImages(VideoDataset):
    """Images of one COCO file; their truth names crowds too, which are no lessons.

    Attributes:
        crowds: YouTube-VIS annotations of the crowds.
    """

    crowds: tuple[dict[str, Any], ...]

    def truth(self) -> dict[str, Any]:
        """The YouTube-VIS dict of these videos of one frame."""
        truth = VideoDataset(self.videos, self.classes).truth()
        kept = {video.id for video in self.videos}
        truth["annotations"] += [crowd for crowd in self.crowds if crowd["video_id"] in kept]
        return truth


def load_coco(
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[Mapping[str, Any]] | None = None,
    keep_empty: bool = False,
    check_names: bool = True,
) -> VideoDataset:
    """The images of a file in COCO's instance format, each a video of one frame.

    Args:
        images: the folder that the file's `file_name`s are relative to.
        annotations: the JSON file.
        classes: {id, name} of every class, in the order of the model's labels; None takes the file's, by id.
        keep_empty: keep images without an instance.
        check_names: refuse a class list that names a category otherwise than the file.  Files whose category ids
            were mapped to another class list (`coco2ytvis2021_train.json`) often still hold COCO's own names.

    Raises:
        UserError: for anything malformed, with the file and the annotation's id in one line.
    """
    root, file = Path(images), ImageAnnotationFile(Path(annotations))
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder.")
    if classes is not None and check_names:
        check_classes(file, classes)
    kept_classes = [{"id": int(c["id"]), "name": str(c["name"])} for c in classes or file.classes()]
    positions = {c["id"]: k for k, c in enumerate(kept_classes)}
    entries = {image["id"]: image for image in file.images()}
    instances: dict[int, list[tuple[int, int, Outline]]] = {identity: [] for identity in entries}
    crowds = []
    for annotation in file.annotations():
        place, image, category = f"annotation {annotation['id']}", *_parents(file, annotation, entries)
        if category not in positions:
            file.fail(
                place, f"category {category} is not among the {len(positions)} classes (image {image['id']})"
            )
        if annotation.get("iscrowd"):
            crowds.append(_crowd(file, annotation, image))
        else:
            outline = _outline(file, annotation, image)
            instances[image["id"]].append((annotation["id"], positions[category], outline))
    records: list[VideoRecord] = [
        AnnotatedImage(
            id=identity,
            name=Path(image["file_name"]).stem,
            size=(image["height"], image["width"]),
            file=root / image["file_name"],
            instances=tuple(instances[identity]),
        )
        for identity, image in entries.items()
        if instances[identity] or keep_empty
    ]
    return AnnotatedImages(records, kept_classes, tuple(crowds))


def _parents(
    file: ImageAnnotationFile, annotation: dict[str, Any], entries: Mapping[int, dict[str, Any]]
) -> tuple[dict[str, Any], int]:
    image = entries.get(annotation["image_id"])
    if image is None:
        file.fail(f"annotation {annotation['id']}", f"no image {annotation['image_id']} in this file")
    return image, annotation["category_id"]


def _outline(file: ImageAnnotationFile, annotation: dict[str, Any], image: dict[str, Any]) -> Outline:
    """A mask as it is kept: 860 thousand polygons of COCO would take a minute to turn into runs."""
    segmentation = annotation["segmentation"]
    try:
        if not isinstance(segmentation, list):
            return compress(segmentation, (image["height"], image["width"]))[0]
        polygons = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
        good = polygons and all(p.ndim == 1 and len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
        if good and all(np.isfinite(p).all() for p in polygons):
            return tuple(p.tobytes() for p in polygons)
        problem = "neither an RLE nor a list of polygons of three points or more"
    except (ValueError, TypeError, IndexError) as error:
        problem = str(error)
    file.fail(f"annotation {annotation['id']}", f"{problem} (image {image['id']})")


def _crowd(file: ImageAnnotationFile, annotation: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    size = [image["height"], image["width"]]
    outline = _outline(file, annotation, image)
    record = AnnotatedImage(image["id"], "", (size[0], size[1]), Path(), ((annotation["id"], 0, outline),))
    segmentation = {"size": size, "counts": record._counts(record.instances)[0]}
    return {
        "id": annotation["id"],
        "video_id": image["id"],
        "category_id": annotation["category_id"],
        "iscrowd": 1,
        "height": size[0],
        "width": size[1],
        "length": 1,
        "segmentations": [segmentation],
        "areas": [int(rle.area(segmentation))],
        "bboxes": [[float(x) for x in rle.toBbox(segmentation)]],
    }
