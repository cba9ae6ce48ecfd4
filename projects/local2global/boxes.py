"""Boxes: formats, overlaps, and Mask2Box of Eq. (2).

A box is (cx, cy, w, h) in [0, 1] of the frame's own, unpadded size unless a name says xyxy.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to the denominators of the overlaps, so that two empty boxes overlap by 0 (MaskDINO's value).
EPSILON = 1e-6


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) boxes by centre and size to boxes by corners (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) boxes by corners to boxes by centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def _area(xyxy: Tensor) -> Tensor:
    return (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0).prod(dim=-1)


def _overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(one[..., :2], other[..., :2])
    high = torch.minimum(one[..., 2:], other[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    return intersection, _area(one) + _area(other) - intersection


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4) against (..., 4), broadcast."""
    intersection, union = _overlap(one, other)
    return intersection / (union + EPSILON)


def generalized_box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., CVPR 2019) of xyxy boxes (..., 4) against (..., 4), broadcast.

    Returns:
        (...) in (-1, 1].
    """
    intersection, union = _overlap(one, other)
    low = torch.minimum(one[..., :2], other[..., :2])
    high = torch.maximum(one[..., 2:], other[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    return intersection / (union + EPSILON) - (hull - union) / (hull + EPSILON)


def mask_to_box(masks: Tensor, fallback: Tensor, extent: Tensor | None = None, edge: int = 1) -> Tensor:
    """Mask2Box of Eq. (2): the tight box round each mask's positive logits.

    Args:
        masks: (..., h, w) logits; a pixel belongs to the mask where its logit is positive.
        fallback: (..., 4) box returned where a mask is empty, usually where the object was last seen.
        extent: (..., 2) width and height of the unpadded frame in mask pixels; the whole mask if None.
        edge: 1 counts the last pixel as part of the box.  Edge 0 with a fallback of (1, 1, 0, 0) is the rule of
            MaskDINO's `mask2box`; edge 1 with a fallback of zeros is detectron2's `bitmask`.

    Returns:
        (..., 4) boxes (cx, cy, w, h) in [0, 1] of the frame's own size, float32.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.amax(dim=-2) > 0, masks.amax(dim=-1) > 0
    low = torch.stack((_first(columns), _first(rows)), dim=-1)
    # unlike new_tensor, nobody waits for the device
    size = torch.tensor((width, height), dtype=low.dtype).to(low.device, non_blocking=True)
    high = size - 1 - torch.stack((_first(columns.flip(-1)), _first(rows.flip(-1))), dim=-1) + edge
    whole = size if extent is None else extent
    corners = torch.cat((torch.minimum(low, whole), torch.minimum(high, whole)), dim=-1)
    box = xyxy_to_cxcywh(corners) / torch.cat((whole, whole), dim=-1)
    return torch.where(columns.any(dim=-1, keepdim=True), box, fallback.to(box.dtype))


def _first(flags: Tensor) -> Tensor:
    """(..., n) bool to the (...) float32 position of the first True (0 where there is none)."""
    return flags.float().argmax(dim=-1).float()
