"""Panoptic ground truth, for scoring, of videos that are not on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import VideoDataset, VideoRecord


def panoptic_map(record: VideoRecord, t: int) -> NDArray[np.uint32]:
    """(H, W) the annotation id of the instance or stuff at each pixel of frame `t`, 0 where there is none."""
    ids = record.ids.numpy().astype(np.uint32)
    return np.asarray((record.masks(t).numpy() * ids[:, None, None]).sum(0, dtype=np.uint32))


def frame_names(record: VideoRecord) -> tuple[str, ...]:
    """VIPSeg's names of a video's frames: eight digits."""
    return tuple(f"{t:08d}" for t in range(record.length))


class PanopticRecords:
    """The panoptic ground truth of a dataset that is not on disk.

    Args:
        dataset: its classes have `isthing`; the masks of a frame do not overlap.
    """

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset
        self.names = {video.id: video.name for video in dataset.videos}
        self._records = {video.name: video for video in dataset.videos}

    def content(self) -> dict[str, Any]:
        """Videos, annotations and categories as in a VIPSeg file."""
        videos, annotations = [], []
        for record in self.dataset.videos:
            size = {"height": record.size[0], "width": record.size[1]}
            names = frame_names(record)
            images = [{"id": name, "file_name": f"{name}.jpg", **size} for name in names]
            videos.append({"video_id": record.name, "images": images})
            frames = [
                {"image_id": name, "file_name": f"{name}.png", "segments_info": self._segments(record, t)}
                for t, name in enumerate(names)
            ]
            annotations.append({"video_id": record.name, "annotations": frames})
        categories = [dict(c) for c in self.dataset.classes]
        return {"videos": videos, "annotations": annotations, "categories": categories}

    def _segments(self, record: VideoRecord, t: int) -> list[dict[str, Any]]:
        areas = record.masks(t).flatten(1).sum(1).tolist()
        rows = zip(record.ids.tolist(), record.labels.tolist(), areas, strict=True)
        visible = [(identity, self.dataset.classes[label], area) for identity, label, area in rows if area]
        # Stuff comes first: STQ treats a thing that a video lists first as a crowd.
        return [
            {"id": identity, "category_id": category["id"], "area": area, "iscrowd": 0}
            for identity, category, area in sorted(visible, key=lambda entry: (entry[1]["isthing"], entry[0]))
        ]

    def read(self, video: str, frames: Sequence[str]) -> Iterator[NDArray[np.uint32]]:
        """The (H, W) ids of a video's frames, in order."""
        record = self._records[video]
        return (panoptic_map(record, int(frame)) for frame in frames)
