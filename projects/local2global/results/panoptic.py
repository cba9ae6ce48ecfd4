"""From frame predictions to panoptic maps: every pixel is given to one slot or to none, while the video plays.

A slot's class is the argmax of the running mean of its class scores, over the frames so far on which it was kept; the
map of frame t is out before frame t + 1 is read.  A thing's id names its slot and its class, so a change of class opens
a new id; the id of stuff is its class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from ..structures import Clip, FramePredictions, PanopticFrame, PanopticSegment, PanopticVideo
from .instances import resize_logits


@dataclass(frozen=True)
class _Kept:
    """The slots of one frame that are sure enough of some class.

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
    """How the slots share out a frame; the numbers are MaskDINO's and DVIS's.

    Attributes:
        things: the first so many labels are things, the others stuff.
        keep: a slot takes part in a frame if its best class score there is above this.
        temperature: of the softmax over a slot's mean class scores that makes it bid for pixels.
        overlap: a segment is dropped if the pixels that it wins are a smaller share of its mask than this.
        final: whether frames are decided a second time with the means of the whole video.
    """

    things: int
    keep: float = 0.25
    temperature: float = 0.06
    overlap: float = 0.8
    final: bool = False

    def __call__(self, predictions: Iterable[FramePredictions], clip: Clip) -> PanopticVideo:
        """The result of a video; predictions are read as the result is.

        Args:
            predictions: of the video's frames, B = 1.
            clip: the video.
        """
        post = PanopticPostprocessor(self, clip.size)
        return PanopticVideo(
            clip.video_id,
            clip.size,
            len(clip),
            (post.update(one) for one in predictions),
            post.redecide if self.final else None,
        )


class PanopticPostprocessor:
    """Takes the frames of one video in order and gives a map for each, in memory that does not grow with the video.

    Args:
        settings: how slots share out a frame.
        size: (height, width) of the source, in which maps are made.
    """

    def __init__(self, settings: Panoptic, size: tuple[int, int]) -> None:
        self.settings = settings
        self.size = (int(size[0]), int(size[1]))
        self.length = 0
        self._total = self._frames = torch.zeros(0)
        self._spill = _Spill() if settings.final else None

    def update(self, predictions: FramePredictions) -> PanopticFrame:
        """Takes the next frame's predictions (B = 1) and shares out its pixels.

        Raises:
            ValueError: the predictions are of more than one video.
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
        kept = _Kept(slots.cpu(), predictions.masks[0, slots].float(), extent)
        if self._spill is not None:
            self._spill.write(kept)
        self.length += 1
        return self._decide(self.length - 1, kept)

    def redecide(self) -> Iterator[PanopticFrame]:
        """The frames so far, decided anew with the means of all of them.

        Raises:
            ValueError: the masks were not kept (`final=False`).
        """
        if self._spill is None:
            raise ValueError("a second decision needs the masks: use final=True")
        for index, kept in enumerate(self._spill.read()):
            yield self._decide(index, kept)

    def _decide(self, index: int, kept: _Kept) -> PanopticFrame:
        means = self._total[kept.slots] / self._frames[kept.slots].clamp(min=1)[:, None]
        labels = means.argmax(1).tolist()
        bids = (means / self.settings.temperature).softmax(1).amax(1).tolist()
        best = torch.zeros(self.size, device=kept.masks.device)
        owner = torch.full(self.size, len(labels), device=best.device)
        inside = torch.zeros(self.size, dtype=torch.bool, device=best.device)
        whole = []
        # One slot after the other: a hundred maps at 720p would not fit a small machine.
        for row, bid in enumerate(bids):
            logits = resize_logits(kept.masks[row : row + 1], kept.extent, self.size)[0]
            positive = logits >= 0
            whole.append(positive.sum())
            bids_more = logits.sigmoid_().mul_(bid) > best
            best = torch.where(bids_more, logits, best)
            owner[bids_more] = row
            inside = torch.where(bids_more, positive, inside)
        won = owner.flatten().bincount(minlength=len(labels) + 1).tolist()
        ids = [
            self._identify(int(slot), label)
            if positive and area and area >= self.settings.overlap * positive
            else 0
            for slot, label, area, positive in zip(
                kept.slots, labels, won, (int(p) for p in whole), strict=False
            )
        ]
        ids_of = torch.tensor([*ids, 0], dtype=torch.int32, device=owner.device)
        maps = torch.where(inside, ids_of[owner], 0).cpu()
        return PanopticFrame(index, maps, self._list(maps, ids, labels, means))

    def _identify(self, slot: int, label: int) -> int:
        classes = self._total.shape[1]
        return 1 + label + (classes * (1 + slot) if label < self.settings.things else 0)

    def _list(
        self, maps: Tensor, ids: list[int], labels: list[int], means: Tensor
    ) -> tuple[PanopticSegment, ...]:
        """Segments of a map with their areas; where slots are merged, the best one's score."""
        found, areas = np.unique(maps.numpy(), return_counts=True)
        pixels = dict(zip(found.tolist(), areas.tolist(), strict=True))
        segments: dict[int, PanopticSegment] = {}
        for identity, label, score in sorted(zip(ids, labels, means.amax(1).tolist(), strict=True)):
            if identity and identity in pixels:
                segments[identity] = PanopticSegment(identity, label, pixels[identity], score)
        return tuple(segments.values())


class _Spill:
    """Kept slots frame by frame in a temporary file without a name, gone with the process however that ends."""

    def __init__(self) -> None:
        self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - it lives as long as the video
        self._index: list[tuple[int, Tensor, tuple[int, ...], tuple[float, float], torch.device]] = []

    def write(self, kept: _Kept) -> None:
        masks = kept.masks.cpu().numpy()
        self._index.append((self._file.tell(), kept.slots, masks.shape, kept.extent, kept.masks.device))
        self._file.write(masks.tobytes())

    def read(self) -> Iterator[_Kept]:
        for place, slots, shape, extent, device in self._index:
            self._file.seek(place)
            data = self._file.read(4 * int(np.prod(shape)))
            masks = torch.from_numpy(np.frombuffer(data, np.float32).reshape(shape).copy()).to(device)
            yield _Kept(slots, masks, extent)
        self._file.seek(0, 2)
