"""Cuts videos into short ones, e.g. to measure detection and tracking apart from long-term memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .datasets import VideoDataset, VideoRecord


@dataclass(frozen=True)
class Excerpt:
    """A `VideoRecord`: consecutive frames of another record, and the instances visible in them.

    Attributes:
        whole: the other record.
        id: the excerpt's id.
        start: the frame of `whole` that is frame 0.
        length: the number of frames.
        first_id: offset added to the annotation ids of `whole`.
    """

    whole: VideoRecord
    id: int
    start: int
    length: int
    first_id: int

    @property
    def name(self) -> str:
        """The name of `whole` and the first frame."""
        return f"{self.whole.name}-{self.start}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.whole.size

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(M,) the instances of `whole` that have a pixel in some frame."""
        frames = range(self.start, self.start + self.length)
        return np.flatnonzero(np.logical_or.reduce([self.whole.present(t) for t in frames]))

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the dataset's class list."""
        return self.whole.labels[torch.from_numpy(self.rows)]

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return self.whole.ids[torch.from_numpy(self.rows)] + self.first_id

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""
        return self.whole.frame(self._index(t))

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return self.whole.masks(self._index(t))[torch.from_numpy(self.rows)]

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`."""
        return np.asarray(self.whole.present(self._index(t))[self.rows])

    def _index(self, t: int) -> int:
        if not 0 <= t < self.length:
            raise IndexError(f"{self.name} has frames 0 to {self.length - 1}, not {t}")
        return self.start + t


def excerpts(dataset: VideoDataset, length: int) -> VideoDataset:
    """Every video cut into excerpts of `length` frames; a shorter remainder is dropped.

    Args:
        dataset: the videos.
        length: frames of an excerpt.

    Raises:
        UserError: if no video is that long.
    """
    step = 1 + max((int(video.ids.max()) for video in dataset.videos if len(video.ids)), default=0)
    pieces: list[Excerpt] = []
    for video in dataset.videos:
        for number in range(video.length // length if length > 0 else 0):
            pieces.append(Excerpt(video, 1 + len(pieces), number * length, length, number * step))
    if not pieces:
        raise UserError(f"excerpts: no video has {length} frames, or the length is below 1.")
    return VideoDataset(pieces, dataset.classes)
