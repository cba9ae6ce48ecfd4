"""The loss terms of Eq. (4) as pure functions, and the points at which masks are compared.

Mask losses are computed at random points (PointRend, Kirillov et al., CVPR 2020).  A point is (x, y) in [0, 1] of the
unpadded frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_box_iou
from ..errors import check_range
from ..structures import constant

#: Largest number of points per mask: the pixels of a mask of 4096 x 4096.
MAX_POINTS = 1 << 24

#: Weights of the loss terms (MaskDINO).
WEIGHTS = {"cls": 4.0, "mask": 5.0, "dice": 5.0, "box": 5.0, "giou": 2.0}


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise focal loss (Lin et al., ICCV 2017).

    Args:
        logits: (...).
        targets: (...) in {0, 1}.
        alpha: weight of positive elements; negative elements weigh `1 - alpha`.
        gamma: focusing exponent; larger values down-weight easy elements more.

    Returns:
        (...) float32.
    """
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = probability * (1 - targets) + (1 - probability) * targets
    return (alpha * targets + (1 - alpha) * (1 - targets)) * miss**gamma * cross_entropy


def sigmoid_ce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy averaged over the P points of a mask: (..., P) twice to (...)."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(dim=-1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss over the P points of a mask: (..., P) twice to (...).  With MaskDINO's smoothing term of 1."""
    probability, targets = logits.float().sigmoid(), targets.float()
    intersection = 2 * (probability * targets).sum(dim=-1)
    return 1 - (intersection + 1) / (probability.sum(dim=-1) + targets.sum(dim=-1) + 1)


def l1_box_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum of absolute differences of the four coordinates: (..., 4) twice to (...)."""
    return (boxes.float() - targets).abs().sum(dim=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalized IoU of (cx, cy, w, h) boxes: (..., 4) twice to (...)."""
    return 1 - generalized_box_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets))


#: Loss terms of class logits, of masks at points, and of boxes.  A new term is a function in one of these tables and a
#: default weight in `WEIGHTS`.
LABEL_LOSSES = {"cls": sigmoid_focal_loss}
MASK_LOSSES = {"mask": sigmoid_ce_loss, "dice": dice_loss}
BOX_LOSSES = {"box": l1_box_loss, "giou": giou_loss}


def sample_points(maps: Tensor, points: Tensor, extent: Tensor | None = None) -> Tensor:
    """Samples maps bilinearly at points; pixels outside a map are zero (`align_corners=False`).

    Args:
        maps: (B, C, h, w).
        points: (B, P, 2) as (x, y) in [0, 1] of the unpadded frame.
        extent: (2,) or (B, 2) width and height of the unpadded frame in map pixels; None for maps without padding.

    Returns:
        (B, C, P).
    """
    if extent is not None:
        points = points * (extent / constant((maps.shape[-1], maps.shape[-2]), extent))[..., None, :]
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid.to(maps.dtype), align_corners=False).squeeze(-1)


@dataclass(frozen=True)
class PointSampler:
    """Importance sampling of mask points (PointRend, section 3.1).

    Attributes:
        num_points: points P per mask.
        oversample_ratio: uncertain points are selected from `num_points * oversample_ratio` random candidates.
        importance_ratio: fraction of the P points that are the most uncertain candidates; the rest is uniform.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def __post_init__(self) -> None:
        check_range("PointSampler.num_points", self.num_points, 1, MAX_POINTS)
        check_range("PointSampler.oversample_ratio", self.oversample_ratio, 1, 100)
        check_range("PointSampler.importance_ratio", self.importance_ratio, 0, 1)

    @property
    def num_candidates(self) -> int:
        """Number of random points from which the uncertain ones are selected."""
        return int(self.num_points * self.oversample_ratio)

    @property
    def num_uncertain(self) -> int:
        """Number of uncertain points among the P."""
        return int(self.num_points * self.importance_ratio)

    def candidates(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform random points: (count, R, 2), first the candidates, then the points used without selection."""
        num_points = self.num_candidates + self.num_points - self.num_uncertain
        return torch.rand(count, num_points, 2, generator=generator, device=generator.device)

    def choose(self, logits: Tensor) -> Tensor:
        """Selects the points of each mask.

        Args:
            logits: (..., R) mask logits at the points of `candidates`.

        Returns:
            (..., P) int64 indices into R: the candidates with logits closest to 0, unsorted, then the uniform points.
        """
        certainty = logits[..., : self.num_candidates].abs()
        # Sorting takes longer than selection, and the loss does not depend on the order.
        uncertain = certainty.topk(self.num_uncertain, dim=-1, largest=False, sorted=False).indices
        uniform = torch.arange(self.num_candidates, logits.shape[-1], device=logits.device)
        return torch.cat((uncertain, uniform.expand(*uncertain.shape[:-1], -1)), dim=-1)
