"""Boxes and masks: formats, overlaps, and Mask2Box of Eq. (2).

A box is (cx, cy, w, h) in [0, 1] of the unpadded frame unless a name says xyxy.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to the denominators of the overlaps, so that the IoU of two empty boxes is 0 (MaskDINO's value).
EPSILON = 1e-6


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from (cx, cy, w, h) to corners (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners (x1, y1, x2, y2) to (cx, cy, w, h)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def _area(xyxy: Tensor) -> Tensor:
    return (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def _overlap(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of xyxy boxes (..., 4), broadcast."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    return intersection, _area(boxes1) + _area(boxes2) - intersection


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4), broadcast."""
    intersection, union = _overlap(boxes1, boxes2)
    return intersection / (union + EPSILON)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., CVPR 2019) of xyxy boxes (..., 4), broadcast.

    Returns:
        (...) in (-1, 1].
    """
    intersection, union = _overlap(boxes1, boxes2)
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    return intersection / (union + EPSILON) - (hull - union) / (hull + EPSILON)


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of all pairs of masks.

    Args:
        first: (..., M, h, w) bool.
        second: (..., N, h, w) bool.

    Returns:
        (..., M, N) float32 in [0, 1]; 0 where both are empty.
    """
    a, b = first.flatten(-2).float(), second.flatten(-2).float()
    intersection = a @ b.mT
    union = a.sum(-1)[..., :, None] + b.sum(-1)[..., None, :] - intersection
    return intersection / union.clamp(min=1)


def mask_to_box(masks: Tensor, fallback: Tensor, extent: Tensor | None = None, edge: int = 1) -> Tensor:
    """Mask2Box of Eq. (2): the tight box around each mask's positive logits.

    Args:
        masks: (..., h, w) logits; a pixel belongs to the mask where its logit is positive.
        fallback: (..., 4) box returned for an empty mask, usually the object's last box.
        extent: (..., 2) width and height of the unpadded frame in mask pixels; None means the whole mask.
        edge: pixels added to the last positive row and column.  Edge 0 with fallback (1, 1, 0, 0) is MaskDINO's
            `mask2box`; edge 1 with fallback 0 is detectron2's `bitmask`.

    Returns:
        (..., 4) boxes (cx, cy, w, h) in [0, 1] of the unpadded frame, float32.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.amax(dim=-2) > 0, masks.amax(dim=-1) > 0
    low = torch.stack((_first(columns), _first(rows)), dim=-1)
    # Unlike new_tensor, this avoids a device synchronisation.
    size = torch.tensor((width, height), dtype=low.dtype).to(low.device, non_blocking=True)
    high = size - 1 - torch.stack((_first(columns.flip(-1)), _first(rows.flip(-1))), dim=-1) + edge
    whole = size if extent is None else extent
    corners = torch.cat((torch.minimum(low, whole), torch.minimum(high, whole)), dim=-1)
    box = xyxy_to_cxcywh(corners) / torch.cat((whole, whole), dim=-1)
    return torch.where(columns.any(dim=-1, keepdim=True), box, fallback.to(box.dtype))


def _first(flags: Tensor) -> Tensor:
    """Position of the first True of (..., n), as (...) float32; 0 if there is none."""
    return flags.float().argmax(dim=-1).float()
