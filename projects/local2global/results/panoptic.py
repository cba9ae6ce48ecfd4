"""Online panoptic maps from frame predictions: each pixel is assigned to one slot or to void, frame by frame.

A slot's class is the argmax of its mean class scores over the frames so far on which it was confident.  The map of
frame t is emitted before frame t + 1 is read.  A thing's id encodes slot and class, so a change of class opens a new
id; a stuff id encodes the class only.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from ..structures import Clip, FramePredictions, PanopticFrame, PanopticSegment, PanopticVideo
from .masks import resize_logits


@dataclass(frozen=True)
class _Candidates:
    """The slots of one frame whose best class score is above the threshold.

    Attributes:
        slots: (n,) int64 on the CPU.
        masks: (n, h, w) float32 logits.
        extent: (width, height) of the unpadded frame in mask pixels.
    """

    slots: Tensor
    masks: Tensor
    extent: tuple[float, float]


@dataclass(frozen=True)
class Panoptic:
    """Settings of panoptic inference; the defaults are those of MaskDINO and DVIS.

    Attributes:
        things: labels below this number are things, the others stuff.
        keep: a slot is a candidate on a frame if its best class score there is above this value.
        temperature: temperature of the softmax over a slot's mean class scores, which weighs its mask.
        overlap: a segment is dropped if it wins a smaller fraction of its mask's pixels than this value.
        final: whether the maps of all frames are recomputed with the mean scores of the whole video.
    """

    things: int
    keep: float = 0.25
    temperature: float = 0.06
    overlap: float = 0.8
    final: bool = False

    def __call__(self, predictions: Iterable[FramePredictions], clip: Clip) -> PanopticVideo:
        """The panoptic result of a video; predictions are consumed while the result is iterated.

        Args:
            predictions: one per frame, B = 1.
            clip: the video.
        """
        post = PanopticPostprocessor(self, clip.size)
        return PanopticVideo(
            clip.video_id,
            clip.size,
            len(clip),
            (post.update(frame) for frame in predictions),
            post.redecide if self.final else None,
        )


class PanopticPostprocessor:
    """Computes the panoptic map of each frame of one video.  Memory does not grow with the video.

    Args:
        settings: settings of panoptic inference.
        size: (height, width) of the source, the size of the maps.
    """

    def __init__(self, settings: Panoptic, size: tuple[int, int]) -> None:
        self.settings = settings
        self.size = (int(size[0]), int(size[1]))
        self.length = 0
        self._total = self._frames = torch.zeros(0)
        self._file = _CandidateFile() if settings.final else None

    def update(self, predictions: FramePredictions) -> PanopticFrame:
        """The map of the next frame.

        Args:
            predictions: predictions of one video's frame (B = 1).

        Raises:
            ValueError: the predictions have B > 1.
        """
        if len(predictions.logits) != 1:
            raise ValueError(f"expected the predictions of one video, got {len(predictions.logits)}")
        scores = predictions.logits[0].detach().float().sigmoid()
        if not self.length:
            self._total = torch.zeros_like(scores, dtype=torch.float64)
            self._frames = torch.zeros_like(self._total[:, 0])
        slots = (scores.amax(1) > self.settings.keep).nonzero()[:, 0]
        self._total[slots] += scores[slots]
        self._frames[slots] += 1
        extent = (float(predictions.extent[0, 0]), float(predictions.extent[0, 1]))
        candidates = _Candidates(slots.cpu(), predictions.masks[0, slots].float(), extent)
        if self._file is not None:
            self._file.append(candidates)
        self.length += 1
        return self._decide(self.length - 1, candidates)

    def redecide(self) -> Iterator[PanopticFrame]:
        """The maps of all frames so far, recomputed with the mean scores of all of them.

        Raises:
            ValueError: the masks were not saved (`final=False`).
        """
        if self._file is None:
            raise ValueError("recomputing the maps requires final=True")
        for index, candidates in enumerate(self._file.read()):
            yield self._decide(index, candidates)

    def _decide(self, index: int, candidates: _Candidates) -> PanopticFrame:
        means = self._total[candidates.slots] / self._frames[candidates.slots][:, None]
        labels = means.argmax(1).tolist()
        weights = (means / self.settings.temperature).softmax(1).amax(1).tolist()
        best = torch.zeros(self.size, device=candidates.masks.device)
        owner = torch.full(self.size, len(labels), device=best.device)
        inside = torch.zeros(self.size, dtype=torch.bool, device=best.device)
        mask_areas = []
        # One slot at a time: the upsampled logits of 100 slots at 720p need 370 MB.
        for row, weight in enumerate(weights):
            logits = resize_logits(candidates.masks[row : row + 1], candidates.extent, self.size)[0]
            positive = logits >= 0
            mask_areas.append(positive.sum())
            higher = logits.sigmoid_().mul_(weight) > best
            best = torch.where(higher, logits, best)
            owner[higher] = row
            inside = torch.where(higher, positive, inside)
        won = owner.flatten().bincount(minlength=len(labels) + 1).tolist()
        ids = [0] * len(labels)
        for row, area in enumerate(int(area) for area in mask_areas):
            if area and won[row] and won[row] >= self.settings.overlap * area:
                ids[row] = self._segment_id(int(candidates.slots[row]), labels[row])
        ids_of = torch.tensor([*ids, 0], dtype=torch.int32, device=owner.device)
        maps = torch.where(inside, ids_of[owner], 0).cpu()
        return PanopticFrame(index, maps, self._segments(maps, ids, labels, means))

    def _segment_id(self, slot: int, label: int) -> int:
        classes = self._total.shape[1]
        return 1 + label + (classes * (1 + slot) if label < self.settings.things else 0)

    @staticmethod
    def _segments(
        maps: Tensor, ids: list[int], labels: list[int], means: Tensor
    ) -> tuple[PanopticSegment, ...]:
        """The segments of a map with their areas.  Merged slots (stuff) report the best slot's score."""
        present, areas = np.unique(maps.numpy(), return_counts=True)
        pixels = dict(zip(present.tolist(), areas.tolist(), strict=True))
        segments: dict[int, PanopticSegment] = {}
        for segment, label, score in sorted(zip(ids, labels, means.amax(1).tolist(), strict=True)):
            if segment and segment in pixels:
                segments[segment] = PanopticSegment(segment, label, pixels[segment], score)
        return tuple(segments.values())


class _CandidateFile:
    """The candidates of every frame in an unnamed temporary file, deleted with this object or the process."""

    def __init__(self) -> None:
        self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by the finalizer
        weakref.finalize(self, self._file.close)
        self._device = torch.device("cpu")
        self._length = 0

    def append(self, candidates: _Candidates) -> None:
        self._device = candidates.masks.device
        self._file.seek(0, os.SEEK_END)
        for array in (candidates.slots, candidates.masks.cpu(), candidates.extent):
            np.save(self._file, np.asarray(array), allow_pickle=False)
        self._length += 1

    def read(self) -> Iterator[_Candidates]:
        position = 0
        for _ in range(self._length):
            self._file.seek(position)  # on every frame, so that several readers may alternate
            slots, masks, extent = (np.load(self._file, allow_pickle=False) for _ in range(3))
            position = self._file.tell()
            width, height = extent.tolist()
            yield _Candidates(
                torch.from_numpy(slots), torch.from_numpy(masks).to(self._device), (width, height)
            )
