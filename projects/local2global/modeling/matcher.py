"""Matching (section 3.2): each instance is matched to a slot once, on the first frame where it is visible.

Assigned slots are excluded from later matching, also during occlusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_box_iou
from ..errors import UserError, check_range
from .losses import MAX_POINTS, WEIGHTS


@dataclass(frozen=True)
class Matcher:
    """The cost of matching a query to an instance.

    A weight of None means the weight of the corresponding loss term.

    Attributes:
        cost_class: weight of the focal class cost (`cls`).
        cost_mask: weight of the mask cross-entropy (`mask`).
        cost_dice: weight of the dice cost (`dice`).
        cost_box: weight of the L1 box distance (`box`).
        cost_giou: weight of the generalized IoU (`giou`).
        num_points: points per mask; all queries and instances of a frame are compared at the same points.
    """

    cost_class: float | None = None
    cost_mask: float | None = None
    cost_dice: float | None = None
    cost_box: float | None = None
    cost_giou: float | None = None
    num_points: int = 12544

    def __post_init__(self) -> None:
        check_range("Matcher.num_points", self.num_points, 1, MAX_POINTS)

    def weights(self, loss_weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
        """The cost weight of each loss term."""
        cost_weights = {
            "cls": self.cost_class,
            "mask": self.cost_mask,
            "dice": self.cost_dice,
            "box": self.cost_box,
            "giou": self.cost_giou,
        }
        return {
            term: loss_weights[term] if weight is None else weight for term, weight in cost_weights.items()
        }

    @torch.no_grad()
    def cost(
        self,
        logits: Tensor,
        boxes: Tensor,
        masks: Tensor,
        tgt_labels: Tensor,
        tgt_boxes: Tensor,
        tgt_masks: Tensor,
        has_box: Tensor | None = None,
        loss_weights: Mapping[str, float] = WEIGHTS,
    ) -> Tensor:
        """Costs of all (query, instance) pairs, computed in float32.

        Args:
            logits: (..., N, K) class logits.
            boxes: (..., N, 4).
            masks: (..., N, P) mask logits at P points.
            tgt_labels: (..., M) int64 class indices.
            tgt_boxes: (..., M, 4).
            tgt_masks: (..., M, P) in [0, 1] at the same points.
            has_box: (..., M) bool, whether the box costs apply to an instance (not to stuff); None: to all.
            loss_weights: of the five terms, used where the cost weight is None.

        Returns:
            (..., N, M) float32.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes, masks, tgt_masks = (x.float() for x in (logits, boxes, masks, tgt_masks))
            weights = self.weights(loss_weights)
            columns = tgt_labels[..., None, :].expand(*logits.shape[:-1], tgt_labels.shape[-1])
            giou = generalized_box_iou(
                cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(tgt_boxes)[..., None, :, :]
            )
            box_cost = weights["box"] * torch.cdist(boxes, tgt_boxes, p=1) - weights["giou"] * giou
            if has_box is not None:
                box_cost = box_cost * has_box[..., None, :]
            return (
                weights["cls"] * class_cost(logits).gather(-1, columns)
                + weights["mask"] * mask_cost(masks, tgt_masks)
                + weights["dice"] * dice_cost(masks, tgt_masks)
                + box_cost
            )


def class_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-5) -> Tensor:
    """Focal cost of each class, with detrex's epsilon: (..., N, K) logits to (..., N, K)."""
    probability = logits.sigmoid()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + eps).log()
    positive = alpha * (1 - probability) ** gamma * -(probability + eps).log()
    return positive - negative


def mask_cost(masks: Tensor, tgt_masks: Tensor) -> Tensor:
    """Mean cross-entropy of all pairs: (..., N, P) logits and (..., M, P) targets to (..., N, M)."""
    positive, negative = F.softplus(-masks), F.softplus(masks)
    return (positive @ tgt_masks.mT + negative @ (1 - tgt_masks).mT) / masks.shape[-1]


def dice_cost(masks: Tensor, tgt_masks: Tensor) -> Tensor:
    """Dice loss of all pairs: (..., N, P) logits and (..., M, P) targets to (..., N, M)."""
    probability = masks.sigmoid()
    intersection = 2 * probability @ tgt_masks.mT
    area = probability.sum(-1)[..., :, None] + tgt_masks.sum(-1)[..., None, :]
    return 1 - (intersection + 1) / (area + 1)


def assign(
    cost: NDArray[np.floating[Any]], taken: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The one-to-one assignment of least total cost (Hungarian algorithm).

    Args:
        cost: (N, M).
        taken: (N,) bool, queries that are excluded.  None: all queries are available.

    Returns:
        Query and instance indices of the pairs.  Instances without a free query are left out.

    Raises:
        UserError: if a cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise UserError(
            "a matching cost is not finite: predictions contain NaN or infinity; try a lower learning rate"
        )
    free = np.arange(len(cost)) if taken is None else np.flatnonzero(~taken)
    rows, columns = linear_sum_assignment(cost[free])
    return free[rows], columns


def match_frame(cost: NDArray[np.floating[Any]], visible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Matches the visible instances of one frame: (N, M) costs and (M,) bool to (M,) query indices, -1 for none."""
    indices = np.full(len(visible), -1)
    (instances,) = visible.nonzero()
    rows, columns = assign(cost[:, instances])
    indices[instances[columns]] = rows
    return indices


def match_clip(
    costs: Mapping[int, NDArray[np.floating[Any]]], visible: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Matches each instance of a clip once, on the first frame where it is visible.

    Args:
        costs: (N, M) costs by frame index, for every frame on which an instance is first visible.
        visible: (T, M) bool.

    Returns:
        (M,) slot of each instance; -1 if it is never visible or no slot was free.
    """
    slots = np.full(visible.shape[1], -1)
    first = np.where(visible.any(axis=0), visible.argmax(axis=0), -1)
    for t in sorted(set(first.tolist()) - {-1}):
        (new,) = (first == t).nonzero()
        taken = np.zeros(len(costs[t]), dtype=bool)
        taken[slots[slots >= 0]] = True
        rows, columns = assign(costs[t][:, new], taken)
        slots[new[columns]] = rows
    return slots
