"""Positions, Eq. (2): g_pos,t = MLP(PE(Mask2Box(M_{t-1}))), trajectory as position embedding.

PE is `box_sine_embedding`.  MLP is the decoder's `ref_point_head`, passed as `embed_boxes`.  Mask2Box is applied when
frame t - 1 is decoded.  The boxes are stored in `Queries.boxes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..structures import Positions, Proposals, Queries
from .layers import sine_waves

#: (B, N, 4) boxes to (B, N, C) position embeddings.
EmbedBoxes = Callable[[Tensor], Tensor]


def box_sine_embedding(boxes: Tensor, dim: int = 128) -> Tensor:
    """PE of Eq. (2): sine and cosine embedding of the coordinates, in the order y, x, w, h (DAB-DETR).

    Args:
        boxes: (..., 4) boxes or (..., 2) points in [0, 1].
        dim: features per coordinate.

    Returns:
        (..., 4 * dim) or (..., 2 * dim), float32.
    """
    x, y, *size = sine_waves(boxes.float() * (2 * math.pi), dim).unbind(dim=-2)
    return torch.cat((y, x, *size), dim=-1)


class TrajectoryPositions(nn.Module):
    """g_pos: the embedded box of each slot's last mask."""

    def forward(self, queries: Queries, embed_boxes: EmbedBoxes) -> Positions:
        """Positions of the slots."""
        return Positions(embed_boxes(queries.boxes), queries.boxes)


class StaticPositions(nn.Module):
    """No trajectory (Table 3, rows 1 and 2): g_pos is a learned embedding per slot, used inside the aligner only.

    The decoder's initial reference is Mask2Box of each query's mask on the current frame.
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, queries: Queries, embed_boxes: EmbedBoxes) -> Positions:
        """Positions of the slots."""
        del embed_boxes
        embed = self.embed.weight.expand(len(queries.embed), -1, -1)
        return Positions(embed, None)


class NoPositions(nn.Module):
    """g_pos = 0: an alternative for Table 3, row 2; the paper does not specify g_pos without trajectory."""

    def forward(self, queries: Queries, embed_boxes: EmbedBoxes) -> Positions:
        """Positions of the slots."""
        del embed_boxes
        return Positions(torch.zeros_like(queries.embed), None)


class StaticLocalPositions(nn.Module):
    """l_pos: a learned embedding per confidence rank of the local queries."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, local: Proposals, embed_boxes: EmbedBoxes) -> Tensor:
        """Positions of the local queries, (B, N, C)."""
        del embed_boxes
        return self.embed.weight.expand(len(local.embed), -1, -1)


class DynamicLocalPositions(nn.Module):
    """l_pos: Eq. (2) on the boxes of the local queries (Table 6, row 3)."""

    def forward(self, local: Proposals, embed_boxes: EmbedBoxes) -> Tensor:
        """Positions of the local queries, (B, N, C)."""
        return embed_boxes(local.boxes)
