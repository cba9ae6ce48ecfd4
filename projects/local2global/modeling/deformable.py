"""Multi-scale deformable attention (Zhu et al., ICLR 2021, Eq. 3).

Every head of every query samples each feature level at a few learned points and sums the samples, weighted.
`sample_definition` computes the sum by `grid_sample`; `ops.deformable_sample` computes it faster.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_range
from ..structures import Shapes, constant
from .ops import deformable_sample


def sample_definition(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, level by level; the reference for `ops.deformable_sample` (same arguments)."""
    batch, _, heads, depth = values.shape
    grids = torch.stack((2 * x - 1, 2 * y - 1), dim=-1)  # (B, Q, heads, L, points, 2) in [-1, 1]
    total = values.new_zeros(batch * heads, depth, x.shape[1])
    for level, tokens in enumerate(values.split([h * w for h, w in shapes], dim=1)):
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, depth, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, Q, points, 2)
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, Q, points)
        total = total + (samples * weight[:, None]).sum(dim=-1)
    return total.view(batch, heads * depth, -1).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention, without residual and norm.

    Each head has C / `num_heads` channels and samples `num_points` points in each of the `num_levels` levels.
    """

    def __init__(self, dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_heads": num_heads, "num_levels": num_levels, "num_points": num_points}
        for name, size in sizes.items():
            check_range(name, size, 1)
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, points * 2)
        self.attention_weights = nn.Linear(dim, points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Place point p of head h initially p + 1 pixels from the reference, in a direction that depends on h."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        bias = directions[:, None, None] * steps.expand(1, self.num_levels, -1, 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, references: Tensor, value: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Sample `value` around `references`.

        Args:
            query: (B, Q, C), with its position added.
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes, in [0, 1] of each level's padded map.
            value: (B, S, C) tokens of all levels, flattened and concatenated.
            shapes: (height, width) of every level, in the order of the tokens.
            padding: (B, S) bool, True at tokens whose values are replaced by zeros.

        Returns:
            (B, Q, C).
        """
        values = self.value_proj(value)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        values = values.unflatten(-1, (self.num_heads, -1))
        x, y, weights = self.sampling_points(query, references, shapes)
        out: Tensor = self.output_proj(deformable_sample(values, shapes, x, y, weights))
        return out

    def sampling_points(
        self, query: Tensor, references: Tensor, shapes: Shapes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sampling locations x and y, and attention weights: (B, Q, heads, L, points) float32 each.

        An offset of 1 is one pixel of the level if the references are points.  If they are boxes, an offset of
        `num_points` is half the width or height of the box.
        """
        with torch.autocast(query.device.type, enabled=False):
            query, references = query.float(), references.float()
            offsets = self.sampling_offsets(query)
            offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
            weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
            weights = weights.unflatten(-1, (self.num_levels, self.num_points))
            centre_x, centre_y, *size = references[:, :, None, :, None].unbind(dim=-1)
            if size:
                unit_x, unit_y = (side / (2 * self.num_points) for side in size)
            else:
                sizes = constant(shapes, references)
                unit_y, unit_x = (1 / sizes)[:, None].unbind(dim=-1)  # (L, 1) each
            offset_x, offset_y = offsets.unbind(dim=-1)
            return centre_x + offset_x * unit_x, centre_y + offset_y * unit_y, weights
