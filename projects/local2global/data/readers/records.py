"""Videos whose frames are image files: their records, lazily read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .images import read_sized
from .rle import Outline, decode_outlines, sample_outlines


@dataclass(frozen=True)
class FileVideo:
    """The part of a `VideoRecord` that is the same for every annotation format.

    Attributes:
        id: the video's id, unique in its dataset.
        name: its folder.
        size: (height, width) of every frame.
        files: the image file of every frame.
    """

    id: int
    name: str
    size: tuple[int, int]
    files: tuple[Path, ...]

    @property
    def length(self) -> int:
        """The number of frames."""
        return len(self.files)

    def frame(self, t: int) -> Tensor:
        """(3, H, W) uint8 RGB of frame `t`.

        Raises:
            UserError: if the file cannot be read or does not have the annotated size.
        """
        return read_sized(self.files[t], self.size).contiguous()

    def shrunk(self, t: int, factor: int) -> Tensor:
        """(3, H / factor, W / factor) uint8 of frame `t`, or full size if the format cannot be decoded smaller."""
        return read_sized(self.files[t], self.size, factor)


@dataclass(frozen=True)
class Track:
    """One annotation of a video.

    Attributes:
        id: the annotation's id.
        label: position in the class list.
        outlines: the mask of every frame, None where the instance has no pixel.
    """

    id: int
    label: int
    outlines: tuple[Outline | None, ...]


@dataclass(frozen=True)
class AnnotatedVideo(FileVideo):
    """A `VideoRecord` of image files and the tracks of an annotation file.

    Attributes:
        tracks: one per instance.
    """

    tracks: tuple[Track, ...]

    @property
    def labels(self) -> Tensor:
        """(M,) int64 positions in the class list."""
        return torch.tensor([track.label for track in self.tracks], dtype=torch.int64)

    @property
    def ids(self) -> Tensor:
        """(M,) int64 annotation ids."""
        return torch.tensor([track.id for track in self.tracks], dtype=torch.int64)

    def masks(self, t: int) -> Tensor:
        """(M, H, W) bool of frame `t`."""
        return decode_outlines([track.outlines[t] for track in self.tracks], self.size)

    def sampled(
        self, t: int, rows: NDArray[np.int64], columns: NDArray[np.int64], instances: NDArray[np.bool_]
    ) -> Tensor:
        """(m, h, w) bool: the masks of m selected instances in frame `t`, at some rows and columns."""
        outlines = [self.tracks[i].outlines[t] for i in np.flatnonzero(instances)]
        return sample_outlines(outlines, self.size, rows, columns)

    def present(self, t: int) -> NDArray[np.bool_]:
        """(M,) which instances have a mask in frame `t`.

        A polygon too thin to contain a pixel counts: it is not rasterised here.
        """
        return np.array([track.outlines[t] is not None for track in self.tracks], dtype=np.bool_)
