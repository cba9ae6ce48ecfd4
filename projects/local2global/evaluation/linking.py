"""Reference trackers: masks of single frames, linked by ground truth or by IoU.

Both choose, for every frame, the prediction that each slot shows.  The oracle bounds what identity is worth with the
masks of a segmenter; linking by IoU is the simplest tracker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import mask_iou


def oracle_rows(truth: Tensor, masks: Tensor) -> Tensor:
    """The prediction of each object: the one-to-one assignment with the largest summed IoU.

    Args:
        truth: (M, H, W) bool.
        masks: (N, H, W) bool masks of one frame.

    Returns:
        (M,) int64 rows of `masks`, -1 for an object without a pixel or without an overlapping mask.
    """
    iou = mask_iou(truth, masks)
    rows = torch.full((len(truth),), -1)
    objects, predictions = linear_sum_assignment(iou.numpy(), maximize=True)
    rows[torch.from_numpy(objects)] = torch.from_numpy(predictions)
    overlap = iou.gather(1, rows.clamp(min=0)[:, None])[:, 0] if masks.shape[0] else torch.zeros(len(rows))
    return torch.where(overlap > 0, rows, -1)


@dataclass
class IoULinker:
    """Links confident masks to the tracks of earlier frames by IoU, one to one.

    Attributes:
        slots: the maximum number of tracks of a video; further objects are dropped.
        min_score: masks below this score are dropped.
        min_iou: a mask that overlaps no track by this much starts a new track.
        memory: frames for which a track without a mask stays linkable.
    """

    slots: int
    min_score: float = 0.3
    min_iou: float = 0.1
    memory: int = 8
    _masks: list[Tensor] = field(default_factory=list, init=False, repr=False)  # last mask of each track
    _ages: list[int] = field(default_factory=list, init=False, repr=False)  # frames since then

    def rows(self, masks: Tensor, scores: Tensor) -> Tensor:
        """The prediction of each slot on the next frame.

        Args:
            masks: (N, H, W) bool.
            scores: (N,) best class score of each mask.

        Returns:
            (slots,) int64 rows of `masks`, -1 for a slot without a mask.
        """
        confident = ((scores >= self.min_score) & masks.flatten(1).any(1)).nonzero()[:, 0]
        self._ages = [age + 1 for age in self._ages]
        linked = torch.full((self.slots,), -1)
        alive = [track for track, age in enumerate(self._ages) if age <= self.memory]
        new = set(confident.tolist())
        if alive and len(confident):
            iou = mask_iou(torch.stack([self._masks[track] for track in alive]), masks[confident])
            for track, column in zip(*linear_sum_assignment(iou.numpy(), maximize=True), strict=True):
                if iou[track, column] >= self.min_iou:
                    linked[alive[track]] = confident[column]
                    new.discard(int(confident[column]))
        for row in sorted(new, key=lambda row: -float(scores[row]))[: self.slots - len(self._masks)]:
            linked[len(self._masks)] = row
            self._masks.append(masks[row])
            self._ages.append(0)
        for track in (linked >= 0).nonzero()[:, 0].tolist():
            self._masks[track], self._ages[track] = masks[linked[track]], 0
        return linked
