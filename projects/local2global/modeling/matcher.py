"""Matching (section 3.2): each instance is given a slot once, on the first frame where it can be seen.

Slots that own an instance are barred for every later one, whether their instance is visible or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_box_iou
from ..errors import UserError


@dataclass(frozen=True)
class Matcher:
    """The cost of giving an instance to a query, and the assignment.

    Attributes:
        cost_class: weight of the focal class cost.
        cost_mask: weight of the masks' cross-entropy.
        cost_dice: weight of their dice.
        cost_box: weight of the boxes' L1 distance.
        cost_giou: weight of their generalized IoU.
        num_points: points at which masks are compared.
    """

    cost_class: float = 4.0
    cost_mask: float = 5.0
    cost_dice: float = 5.0
    cost_box: float = 5.0
    cost_giou: float = 2.0
    num_points: int = 12544

    @torch.no_grad()
    def cost(
        self,
        logits: Tensor,
        boxes: Tensor,
        masks: Tensor,
        labels: Tensor,
        true_boxes: Tensor,
        true_masks: Tensor,
        boxed: Tensor | None = None,
    ) -> Tensor:
        """Costs of all pairs, in float32; any leading dimensions.

        Args:
            logits: (..., N, K) class logits.
            boxes: (..., N, 4).
            masks: (..., N, P) mask logits at P points.
            labels: (..., M) class indices.
            true_boxes: (..., M, 4).
            true_masks: (..., M, P) in [0, 1] at the same points.
            boxed: (..., M) bool, whether a box says where the instance is; None if it does for all.

        Returns:
            (..., N, M).
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes, masks, true_masks = (
                logits.float(),
                boxes.float(),
                masks.float(),
                true_masks.float(),
            )
            wanted = labels[..., None, :].expand(*logits.shape[:-1], labels.shape[-1])
            one, other = cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(true_boxes)[..., None, :, :]
            place = self.cost_box * torch.cdist(boxes, true_boxes, p=1)
            place = place - self.cost_giou * generalized_box_iou(one, other)
            if boxed is not None:
                place = place * boxed[..., None, :]
            return (
                self.cost_class * class_cost(logits).gather(-1, wanted)
                + self.cost_mask * mask_cost(masks, true_masks)
                + self.cost_dice * dice_cost(masks, true_masks)
                + place
            )


def class_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-5) -> Tensor:
    """What it costs a query to be of each class: (..., N, K) logits to the same, focal (detrex's epsilon)."""
    probability = logits.sigmoid()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + eps).log()
    positive = alpha * (1 - probability) ** gamma * -(probability + eps).log()
    return positive - negative


def mask_cost(masks: Tensor, true_masks: Tensor) -> Tensor:
    """Mean cross-entropy of all pairs: (..., N, P) logits and (..., M, P) targets to (..., N, M)."""
    positive = torch.nn.functional.softplus(-masks)
    negative = torch.nn.functional.softplus(masks)
    return (positive @ true_masks.mT + negative @ (1 - true_masks).mT) / masks.shape[-1]


def dice_cost(masks: Tensor, true_masks: Tensor) -> Tensor:
    """Dice of all pairs: (..., N, P) logits and (..., M, P) targets to (..., N, M)."""
    probability = masks.sigmoid()
    overlap = 2 * probability @ true_masks.mT
    return 1 - (overlap + 1) / (probability.sum(-1)[..., :, None] + true_masks.sum(-1)[..., None, :] + 1)


def assign(cost: np.ndarray, taken: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest one-to-one assignment.

    Args:
        cost: (N, M).
        taken: (N,) bool, queries that may not be given anything; None if all may.

    Returns:
        Queries and instances of the pairs; instances without a free query are left out.

    Raises:
        UserError: if a cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise UserError(
            "a matching cost is not finite: the predictions have overflowed; try a lower learning rate"
        )
    free = np.arange(len(cost)) if taken is None else np.flatnonzero(~taken)
    rows, columns = linear_sum_assignment(cost[free])
    return free[rows], columns
