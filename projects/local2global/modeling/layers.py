"""Layers that more than one part of the model is built of; above all, multi-scale deformable attention.

Deformable attention (Zhu et al., ICLR 2021, Eq. 3): every query looks at a few learned points of every feature level
and returns their weighted sum.  The sum itself is `sampling.py`'s.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import padded_pixels
from . import onednn, products
from .ops.bags import Shapes, level_sizes, rows_at_a_time, sample_levels, sample_tokens, samples_first


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x, with x held within [eps, 1 - eps] (Deformable DETR's form)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_waves(x: Tensor, dim: int) -> Tensor:
    """Sine and cosine by turns, at `dim` / 2 wavelengths from 2 pi to 20000 pi: (...) angles to (..., dim), float32."""
    half = torch.arange(dim // 2, device=x.device, dtype=torch.float32)
    angle = x.float()[..., None] / 10000 ** (2 * half / dim)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def mask_logits(mask_embed: Tensor, mask_features: Tensor, extent: Tensor) -> Tensor:
    """Masks of mask embeddings.

    Args:
        mask_embed: (B, N, C).
        mask_features: (B, C, h, w).
        extent: (B, 2) width and height of the unpadded frame in mask pixels.

    Returns:
        (B, N, h, w) float32 logits, 0 (that is, in no mask) in padding.
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        pixels = mask_features.float().permute(0, 2, 3, 1).flatten(1, 2)
        masks = products.of_rows(mask_embed.float(), pixels).unflatten(-1, mask_features.shape[-2:])
    return masks.masked_fill(padded_pixels(extent, *masks.shape[-2:])[:, None], 0.0)


def linear(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    """A linear layer, and a ReLU if asked: (..., in) to (..., out)."""
    if is_plain(layer):
        if onednn.takes(layer.weight, x):
            return onednn.linear(layer, x, relu)
        if torch.is_grad_enabled():
            return products.linear(layer, x, relu)
    out = layer(x)
    return out.relu_() if relu else out


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's own and has no hooks: an adapter's, a quantised one, one that is watched is called."""
    return type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks)


class Affine(Protocol):
    """A norm whose statistics are constants."""

    def affine(self) -> tuple[Tensor, Tensor]:
        """The whole norm as (C,) scale and shift."""


def convolution(
    layer: nn.Conv2d, x: Tensor, norm: Affine | None = None, add: Tensor | None = None, relu: bool = False
) -> Tensor:
    """A convolution, then a frozen norm, a sum and a ReLU, each if given: (B, in, H, W) to (B, out, H', W').

    `add` is the caller's to give away: the result may take its place.
    """
    if onednn.takes(layer.weight, x):
        return onednn.convolution(layer, x, norm, add, relu)
    if norm is None:
        out = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        scale, shift = norm.affine()
        shift = shift if layer.bias is None else shift + scale * layer.bias
        out = products.scaled_convolution(layer, x, scale, shift)
    out = out if add is None else out + add
    return out.relu() if relu else out


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_dim: width of the input.
        hidden_dim: width between layers.
        out_dim: width of the output.
        num_layers: number of linear layers.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        *hidden, last = cast(list[nn.Linear], self.layers)
        for layer in hidden:
            x = linear(layer, x, relu=True)
        return linear(last, x)


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its GroupNorm, under detectron2's names (`weight`, `norm.weight`)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 32) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        return self.norm(convolution(self, x))


class FeedForward(nn.Module):
    """x + W2 relu(W1 x), post-normed: the last third of every transformer layer here."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., S, C) to the same."""
        plain = is_plain(self.linear1) and is_plain(self.linear2)
        if plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.norm(x + products.two_layers(self.linear1, self.linear2, x))
        if plain and torch.compiler.is_compiling() and onednn.takes(self.linear1.weight, x):
            return self.norm(x + onednn.two_layers(self.linear1, self.linear2, x))
        parts = [
            self.norm(some + linear(self.linear2, linear(self.linear1, some, relu=True)))
            for some in x.split(rows_at_a_time(x.shape[-2], x.device), dim=-2)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


class Attention(nn.Module):
    """Residual multi-head attention, post-normed; positions are added to queries and keys, never to values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        x_pos: Tensor,
        memory: Tensor | None = None,
        memory_pos: Tensor | None = None,
        barred: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, N, C) queries.
            x_pos: (B, N, C).
            memory: (B, M, C); the queries themselves if None.
            memory_pos: (B, M, C).
            barred: (N, M) bool, True where a query may not look.
        """
        memory, memory_pos = (x, x_pos) if memory is None else (memory, memory_pos)
        key = memory if memory_pos is None else memory + memory_pos
        return self.norm(x + self.attention(x + x_pos, key, memory, need_weights=False, attn_mask=barred)[0])


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention, without the residual.

    Args:
        dim: width C.
        num_heads: heads; C is divided among them.
        num_levels: feature levels L.
        num_points: sampling points of a head in a level.
    """

    def __init__(self, dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} does not divide into {num_heads} heads")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, points * 2)
        self.attention_weights = nn.Linear(dim, points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point p of head h starts p + 1 pixels away from the reference, each head in a direction of its own."""
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
        """Sample `value` round `references`.

        Args:
            query: (B, Q, C), with its position already added.
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes, in [0, 1] of each level's padded map.
            value: (B, S, C) tokens of all levels, flattened and concatenated.
            shapes: (height, width) of every level, in the order of the tokens.
            padding: (B, S) bool, True at tokens that count as zero.

        Returns:
            (B, Q, C).
        """
        x, y, weights = self._sampling(query, references, shapes)
        if is_plain(self.value_proj) and samples_first(x, value):
            sums, shares = sample_tokens(value, shapes, x, y, weights, padding)
            return linear(self.output_proj, self._projected(sums, shares))
        values = linear(self.value_proj, value)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        values = values.unflatten(-1, (self.num_heads, -1))
        return linear(self.output_proj, sample_levels(values, shapes, x, y, weights))

    def _projected(self, sums: Tensor, shares: Tensor) -> Tensor:
        """(B, Q, heads, C) sums over tokens to (B, Q, C) sums over their projections: the bias counts by shares."""
        weight = self.value_proj.weight.unflatten(0, (self.num_heads, -1))
        bias = self.value_proj.bias.unflatten(0, (self.num_heads, -1))
        return (torch.einsum("bqhc,hdc->bqhd", sums, weight) + shares[..., None] * bias).flatten(-2)

    def _sampling(self, query: Tensor, references: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
        """Sampling locations x and y and attention weights, each (B, Q, heads, L, points), in float32."""
        grid = (self.num_heads, self.num_levels, self.num_points)
        with torch.autocast(query.device.type, enabled=False):
            query, references = query.float(), references.float()
            offset_x, offset_y = linear(self.sampling_offsets, query).unflatten(-1, (*grid, 2)).unbind(dim=-1)
            weights = linear(self.attention_weights, query).unflatten(-1, (self.num_heads, -1))
            weights = weights.softmax(dim=-1).unflatten(-1, grid[1:])
            centre_x, centre_y, *size = references[:, :, None, :, None].unbind(dim=-1)
            if size:
                unit_x, unit_y = (side / (2 * self.num_points) for side in size)
            else:
                sizes = level_sizes(shapes, self.num_heads, self.num_points, references.device)
                unit_x, unit_y = (1 / pixels for pixels in sizes)
            return centre_x + offset_x * unit_x, centre_y + offset_y * unit_y, weights
