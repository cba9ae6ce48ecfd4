"""Pieces of videos as videos of their own: what a model finds and follows, apart from what it remembers for long."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .datasets import VideoDataset
from .readers.records import VideoRecord


@dataclass(frozen=True)
class Excerpt:
    """A `VideoRecord`: some frames in a row of another one, and the instances seen in them.

    Attributes:
        whole: that video.
        id: the excerpt's own id.
        start: the whole's frame that is its frame 0.
        length: the number of frames.
        first_id: what is added to the whole's annotation ids.
    """

    whole: VideoRecord
    id: int
    start: int
    length: int
    first_id: int

    @property
    def name(self) -> str:
        """The whole's name and the first frame."""
        return f"{self.whole.name}-{self.start}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.whole.size

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The whole's instances that have a pixel in some frame."""
        frames = range(self.start, self.start + self.length)
        seen = np.logical_or.reduce([self.whole.present(t) for t in frames])
        return np.flatnonzero(seen)

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
        return self.whole.frame(self.start + self._check(t))

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return self.whole.masks(self.start + self._check(t))[torch.from_numpy(self.rows)]

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`."""
        return np.asarray(self.whole.present(self.start + self._check(t))[self.rows])

    def _check(self, t: int) -> int:
        if not 0 <= t < self.length:
            raise IndexError(f"{self.name} has frames 0 to {self.length - 1}, asked for {t}")
        return t


def excerpts(dataset: VideoDataset, length: int) -> VideoDataset:
    """Every video cut into pieces of `length` frames; a rest that is shorter is left out.

    Args:
        dataset: the videos.
        length: frames of a piece.

    Raises:
        UserError: no video is that long.
    """
    step = 1 + max((int(video.ids.max()) for video in dataset.videos if len(video.ids)), default=0)
    pieces: list[Excerpt] = []
    for video in dataset.videos:
        for number in range(video.length // length if length > 0 else 0):
            pieces.append(Excerpt(video, 1 + len(pieces), number * length, length, number * step))
    if not pieces:
        raise UserError(f"excerpts: no video has {length} frames, or the length is below 1.")
    return VideoDataset(pieces, dataset.classes)
