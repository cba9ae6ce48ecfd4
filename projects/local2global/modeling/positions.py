"""Positions, Eq. (2): g_pos,t = MLP(PE(Mask2Box(M_{t-1}))), trajectory as position embedding.

`PE` is `box_sine_embedding`; `MLP` is the decoder's `ref_point_head`, lent as `embed_boxes`; `Mask2Box` has been
applied when a frame was decoded and travels as `Queries.boxes`.
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
    """PE of Eq. (2): sines of a box's numbers, in the order y, x, w, h (DAB-DETR).

    Args:
        boxes: (..., 4) or points (..., 2) in [0, 1].
        dim: features of each number.

    Returns:
        (..., 4 * dim) or (..., 2 * dim), float32.
    """
    x, y, *size = sine_waves(boxes.float() * (2 * math.pi), dim).unbind(dim=-2)
    return torch.cat((y, x, *size), dim=-1)


class TrajectoryPositions(nn.Module):
    """g_pos from where each slot's mask was on the last frame."""

    def forward(self, queries: Queries, embed_boxes: EmbedBoxes) -> Positions:
        """The positions of (B, N, C) queries."""
        return Positions(embed_boxes(queries.boxes), queries.boxes)


class StaticPositions(nn.Module):
    """No trajectory (Table 3, rows 1 and 2): a learned embedding per slot inside the aligner.

    The decoder then starts from the box of each incoming query's mask on the current frame.

    Args:
        num_queries: slots N.
        dim: width C.
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, queries: Queries, embed_boxes: EmbedBoxes) -> Positions:
        """The positions of (B, N, C) queries."""
        del embed_boxes
        embed = self.embed.weight.expand(len(queries.embed), -1, -1)
        return Positions(embed, queries.boxes, current=False)


class StaticLocalPositions(nn.Module):
    """l_pos: one learned embedding per confidence rank of the local queries.

    Args:
        num_queries: local queries K.
        dim: width C.
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, local: Proposals, embed_boxes: EmbedBoxes) -> Tensor:
        """(B, K, C)."""
        del embed_boxes
        return self.embed.weight.expand(len(local.embed), -1, -1)


class DynamicLocalPositions(nn.Module):
    """Eq. (2) on the local queries' own boxes (Table 6, row 3)."""

    def forward(self, local: Proposals, embed_boxes: EmbedBoxes) -> Tensor:
        """(B, K, C)."""
        return embed_boxes(local.boxes)
