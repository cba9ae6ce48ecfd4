"""Datasets: video records with lazily read frames and masks, their ground truth, and merging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .readers.rle import describe_masks, encode_mask

Indices = NDArray[np.int64]


class VideoRecord(Protocol):
    """One video and its training instances; frames and masks are read on demand.

    Records can be pickled, so loader workers can be started by any method.
    """

    @property
    def id(self) -> int:
        """The video's id, unique in its dataset."""

    @property
    def name(self) -> str:
        """The video's name, usually its folder."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""

    @property
    def length(self) -> int:
        """The number of frames."""

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the dataset's class list."""

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids, unique in the dataset, positive where results are scored."""

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`; all False where an instance is absent."""

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`, without decoding a mask."""


@runtime_checkable
class Lean(Protocol):
    """Optional methods of a `VideoRecord`: images decoded at reduced size, masks read at some rows and columns."""

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8 of frame `t`, or full size if the format cannot be decoded smaller."""

    def sampled(self, t: int, rows: Indices, columns: Indices, instances: NDArray[np.bool_]) -> Tensor:
        """(m, h, w) bool: the masks of m selected instances in frame `t`, at h ascending rows and w columns."""


def shrunk_frame(record: VideoRecord, t: int, factor: int) -> Tensor:
    """`Lean.shrunk` of any record."""
    return record.shrunk(t, factor) if isinstance(record, Lean) else record.frame(t)


def sampled_masks(
    record: VideoRecord, t: int, rows: Indices, columns: Indices, instances: NDArray[np.bool_]
) -> Tensor:
    """`Lean.sampled` of any record."""
    if isinstance(record, Lean):
        return record.sampled(t, rows, columns, instances)
    masks = record.masks(t)[torch.from_numpy(instances)]
    return masks[:, torch.from_numpy(rows)][:, :, torch.from_numpy(columns)]


def annotation_entry(
    identity: int,
    video_id: int,
    category_id: int,
    size: tuple[int, int],
    masks: Sequence[Mapping[str, Any] | None],
    iscrowd: int = 0,
) -> dict[str, Any]:
    """A YouTube-VIS annotation: an RLE or None for every frame, with areas and boxes."""
    return {
        "id": identity,
        "video_id": video_id,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "height": size[0],
        "width": size[1],
        "length": len(masks),
        "segmentations": list(masks),
        **describe_masks(masks),
    }


@dataclass(frozen=True)
class VideoDataset:
    """Videos that share a class list.

    Attributes:
        videos: the records.
        classes: {id, name} of every class; label k is entry k, `id` is the dataset's category id.
    """

    videos: Sequence[VideoRecord]
    classes: list[dict[str, Any]]

    def __len__(self) -> int:
        """The number of videos."""
        return len(self.videos)

    def truth(self) -> dict[str, Any]:
        """The ground truth as a YouTube-VIS dict (videos, annotations, categories), every mask encoded."""
        annotations = [a for video in self.videos for a in self._annotations(video)]
        videos = [
            {"id": v.id, "name": v.name, "height": v.size[0], "width": v.size[1], "length": v.length}
            for v in self.videos
        ]
        return {"videos": videos, "annotations": annotations, "categories": [dict(c) for c in self.classes]}

    def _annotations(self, video: VideoRecord) -> list[dict[str, Any]]:
        tracks: list[list[dict[str, Any] | None]] = [[] for _ in video.ids]
        for t in range(video.length):
            present = video.present(t)
            masks = video.masks(t) if present.any() else None
            for row, track in enumerate(tracks):
                track.append(encode_mask(masks[row]) if masks is not None and present[row] else None)
        return [
            annotation_entry(int(identity), video.id, self.classes[int(label)]["id"], video.size, track)
            for identity, label, track in zip(video.ids, video.labels, tracks, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Renumbered:
    """A record of a merged dataset: a video with other ids and labels.

    Attributes:
        record: the original record.
        id: the video's id in the merged dataset.
        first: the annotation id of row 0; row i has id first + i.
        positions: the label in the merged class list of each label of the original dataset.
    """

    record: VideoRecord
    id: int
    first: int
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The video's name."""
        return self.record.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.record.size

    @property
    def length(self) -> int:
        """The number of frames."""
        return self.record.length

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the merged class list."""
        return torch.tensor(self.positions, dtype=torch.int64)[self.record.labels]

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids in the merged ground truth."""
        return self.first + torch.arange(len(self.record.labels))

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""
        return self.record.frame(t)

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return self.record.masks(t)

    def shrunk(self, t: int, factor: int) -> Tensor:
        """See `Lean`."""
        return shrunk_frame(self.record, t, factor)

    def sampled(self, t: int, rows: Indices, columns: Indices, instances: NDArray[np.bool_]) -> Tensor:
        """See `Lean`."""
        return sampled_masks(self.record, t, rows, columns, instances)

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`."""
        return self.record.present(t)


@dataclass(frozen=True)
class MergedVideos(VideoDataset):
    """Several datasets concatenated.

    Attributes:
        parts: the datasets, in the order of `videos`.
    """

    parts: tuple[VideoDataset, ...]

    def truth(self) -> dict[str, Any]:
        """The ground truths of the parts with merged ids; annotations without a record (crowds) are numbered last."""
        records = iter(self.videos)
        videos: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        annotated = False
        next_id = 1 + sum(len(video.labels) for video in self.videos)
        for part in self.parts:
            pairs = [(old, next(records)) for old in part.videos]
            video_ids = {old.id: new.id for old, new in pairs}
            ids = {
                old_id: new_id
                for old, new in pairs
                for old_id, new_id in zip(old.ids.tolist(), new.ids.tolist(), strict=True)
            }
            truth = part.truth()
            annotated |= "annotations" in truth
            videos += [{**video, "id": video_ids[video["id"]]} for video in truth["videos"]]
            for annotation in truth.get("annotations", ()):
                identity = ids.get(annotation["id"], next_id)
                next_id += identity == next_id
                video_id = video_ids[annotation["video_id"]]
                annotations.append({**annotation, "id": identity, "video_id": video_id})
        merged: dict[str, Any] = {"videos": videos, "categories": [dict(c) for c in self.classes]}
        return {**merged, "annotations": annotations} if annotated else merged


def union_of_classes(lists: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The union of several class lists, ordered by id.

    Raises:
        UserError: if two lists give one id two names.
    """
    names: dict[int, str] = {}
    for category in (c for classes in lists for c in classes):
        name = names.setdefault(category["id"], category["name"])
        if name != category["name"]:
            both = f'"{name}" in one dataset and "{category["name"]}" in another'
            raise UserError(f"merge: category {category['id']} is {both}.")
    return [{"id": identity, "name": names[identity]} for identity in sorted(names)]


def merge(*datasets: VideoDataset) -> VideoDataset:
    """Concatenates datasets: videos and annotations are renumbered from 1, class lists are united by id.

    Datasets with equal class lists keep the order of that list.

    Raises:
        UserError: if there is no dataset, or if two class lists give one id two names.
    """
    if not datasets:
        raise UserError("merge: no dataset given.")
    same = all(d.classes == datasets[0].classes for d in datasets)
    classes = datasets[0].classes if same else union_of_classes(d.classes for d in datasets)
    order = {c["id"]: k for k, c in enumerate(classes)}
    records: list[VideoRecord] = []
    first = 1
    for dataset in datasets:
        positions = tuple(order[c["id"]] for c in dataset.classes)
        for record in dataset.videos:
            records.append(Renumbered(record, len(records) + 1, first, positions))
            first += len(record.labels)
    return MergedVideos(records, classes, datasets)
