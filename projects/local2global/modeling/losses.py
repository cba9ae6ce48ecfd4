"""The losses of Eq. (4), as pure functions, and the points at which masks are compared.

Mask losses look at random points (PointRend, Kirillov et al., CVPR 2020).  Points are (x, y) in [0, 1] of the frame's
own, unpadded size; the draws that make them come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_box_iou
from ..structures import constant


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017), element by element.

    Args:
        logits: (...).
        targets: (...) in {0, 1}.
        alpha: weight of the positives.
        gamma: how fast the easy ones fade.

    Returns:
        (...) float32.
    """
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    return (alpha * targets + (1 - alpha) * (1 - targets)) * miss**gamma * cross_entropy


def sigmoid_ce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of (..., P) mask points: (...)."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(dim=-1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of (..., P) mask points: (...), with MaskDINO's + 1 in numerator and denominator."""
    probability, targets = logits.float().sigmoid(), targets.float()
    overlap = 2 * (probability * targets).sum(dim=-1)
    return 1 - (overlap + 1) / (probability.sum(dim=-1) + targets.sum(dim=-1) + 1)


def l1_box_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum of the four absolute differences of (..., 4) boxes: (...)."""
    return (boxes.float() - targets).abs().sum(dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalized IoU of (..., 4) cxcywh boxes: (...)."""
    return 1 - generalized_box_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets))


def sample_points(maps: Tensor, points: Tensor, extent: Tensor | None = None) -> Tensor:
    """Bilinear samples of maps, zero outside them (`align_corners=False`).

    Args:
        maps: (B, C, h, w).
        points: (B, P, 2) as (x, y) in [0, 1] of the frame's own size.
        extent: (2,) or (B, 2) width and height of the frame in pixels of the map; the whole map if None.

    Returns:
        (B, C, P).
    """
    if extent is not None:
        points = points * (extent / constant((maps.shape[-1], maps.shape[-2]), extent))[..., None, :]
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid.to(maps.dtype), align_corners=False).squeeze(-1)


@dataclass(frozen=True)
class PointSampler:
    """How many points, and how they are chosen.

    Attributes:
        num_points: points P of a mask.
        oversample_ratio: candidates drawn for each point that is kept for being uncertain.
        importance_ratio: the part of the points kept for being uncertain; the rest is uniform.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def candidates(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, R, 2) uniform points: the candidates first, then the points that are kept as they are."""
        number = int(self.num_points * self.oversample_ratio) + self.num_points - self._important
        return torch.rand(count, number, 2, generator=generator, device=generator.device)

    def choose(self, logits: Tensor) -> Tensor:
        """Which candidates to keep for (..., R) mask logits at them, which are lost: (..., P) indices."""
        drawn = int(self.num_points * self.oversample_ratio)
        certainty = logits[..., :drawn].abs_()
        # which they are matters, their order doesn't: sorting them takes longer than finding them
        uncertain = certainty.topk(self._important, dim=-1, largest=False, sorted=False).indices
        rest = torch.arange(drawn, logits.shape[-1], device=logits.device).expand(*uncertain.shape[:-1], -1)
        return torch.cat((uncertain, rest), dim=-1)

    @property
    def _important(self) -> int:
        return int(self.num_points * self.importance_ratio)
