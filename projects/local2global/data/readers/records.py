"""One video and its truth, made when asked for: what every reader gives, and what only some can give faster."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


class VideoRecord(Protocol):
    """One video and the instances to learn from; frames and masks are made when asked for.

    Everything is picklable, so that loader workers can be started in any way.
    """

    @property
    def id(self) -> int:
        """The video's id, unique in its dataset."""

    @property
    def name(self) -> str:
        """What people call it, usually its folder."""

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
        """(M,) int64 annotation ids, unique in the dataset, positive where results are to be scored."""

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`."""

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`; all False where an instance is absent."""

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a pixel in frame `t`, without decoding a mask."""


@runtime_checkable
class Lean(Protocol):
    """What a `VideoRecord` may offer besides: images decoded small, masks read at some rows and columns."""

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8 of frame `t`, or the whole where that cannot be."""

    def sampled(self, t: int, rows: Indices, columns: Indices, wanted: NDArray[np.bool_]) -> Tensor:
        """(m, h, w) bool: the pixels of frame `t` at h rising rows and w columns, of the m wanted instances."""


def shrunk_frame(record: VideoRecord, t: int, factor: int) -> Tensor:
    """`Lean.shrunk` of any record."""
    return record.shrunk(t, factor) if isinstance(record, Lean) else record.frame(t)


def sampled_masks(
    record: VideoRecord, t: int, rows: Indices, columns: Indices, wanted: NDArray[np.bool_]
) -> Tensor:
    """`Lean.sampled` of any record."""
    if isinstance(record, Lean):
        return record.sampled(t, rows, columns, wanted)
    masks = record.masks(t)[torch.from_numpy(wanted)]
    return masks[:, torch.from_numpy(rows)][:, :, torch.from_numpy(columns)]
