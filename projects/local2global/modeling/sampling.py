"""The sum at the heart of deformable attention, as bags of an embedding table.

A bag is one (query, head), its entries are the four pixels round each sampling point, its weights attention times
bilinear.  One function of autograd holds the whole: only its inputs are kept for the way back, where the sum over the
entries that read a row is one more sum over bags.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: (height, width) of every feature level.
Shapes = Sequence[tuple[int, int]]

#: So many rows' intermediate results fit into a CPU's cache.
ROWS_AT_A_TIME = 512


def rows_at_a_time(rows: int, device: torch.device) -> int:
    """How many of the rows to take through a layer at once: all of them, but on a CPU that keeps nothing for later.

    There, fresh memory for what lies between two steps of a layer costs as much as the steps.
    """
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    return min(rows, ROWS_AT_A_TIME) if eager and device.type == "cpu" else rows


def sample_levels(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples; a point outside a map reads zeros there (`align_corners=False`).

    Args:
        values: (B, S, heads, D).
        shapes: (height, width) of every level.
        x: (B, Q, heads, L, points) in [0, 1] of the level's width, float32.
        y: the same of its height.
        weights: (B, Q, heads, L, points), float32.

    Returns:
        (B, Q, heads * D), of the values' type.
    """
    if torch.is_grad_enabled():
        return _Sampling.apply(values, x, y, weights, tuple(shapes))
    return _sample(values, x, y, weights, tuple(shapes))


def _sample(values: Tensor, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    batch, tokens = values.shape[:2]
    table = _table(values)
    step = rows_at_a_time(x.shape[1], x.device)
    parts = []
    for start in range(0, x.shape[1], step):
        some = slice(start, start + step)
        corners = _Corners.of(x[:, some], y[:, some], weights[:, some], shapes, tokens)
        shares = corners.shares().to(table.dtype)
        summed = F.embedding_bag(corners.rows(), table, per_sample_weights=shares, mode="sum")
        parts.append(summed.view(batch, -1, values[0, 0].numel()))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(values.dtype)


def _table(values: Tensor) -> Tensor:
    """(B * S * heads, D) rows.  A CPU sums float32 rows faster than it converts half ones one by one."""
    table = values.reshape(-1, values.shape[-1])
    if values.device.type != "cpu":
        return table
    return table.to(torch.promote_types(table.dtype, torch.float32))


class _Sampling(torch.autograd.Function):
    """`sample_levels` with its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        """As `sample_levels`."""
        ctx.save_for_backward(values, x, y, weights)
        ctx.shapes = shapes
        return _sample(values, x, y, weights, shapes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values, the positions and the weights."""
        values, x, y, weights = ctx.saved_tensors
        table = _table(values)
        corners = _Corners.of(x, y, weights, ctx.shapes, values.shape[1])
        rows = corners.rows()
        gradient = gradient.reshape(len(rows), -1).to(table.dtype)
        of_values: Tensor | None = None
        of_places: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.needs_input_grad[0]:
            shares = corners.shares().to(table.dtype)
            of_values = _of_table(table, rows, shares, gradient).view_as(values).to(values.dtype)
        if any(ctx.needs_input_grad[1:]):
            of_places = corners.gradients(_of_shares(table, rows, gradient).to(x.dtype))
        return of_values, *of_places, None


def _of_table(table: Tensor, rows: Tensor, shares: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the table.

    The library scatters row by row; sorting the entries by the row they read turns the scatter into one more sum
    over bags, twice as fast.
    """
    entries = rows.shape[1]
    rows, order = rows.flatten().sort()
    order = order.int()  # half the bytes: embedding_bag takes either
    # not bincount, which waits for the device twice
    every = torch.arange(len(table), device=rows.device, dtype=rows.dtype)
    starts = torch.searchsorted(rows, every, out_int32=True)
    shares = shares.flatten().index_select(0, order)
    return F.embedding_bag(order // entries, gradient, starts, per_sample_weights=shares, mode="sum")


def _of_shares(table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the shares, (bags, entries)."""
    bags = torch.arange(len(rows), device=rows.device, dtype=rows.dtype)
    entries = rows.shape[1]
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, table, rows.flatten(), bags * entries, bags.repeat_interleave(entries), 0
    ).view(rows.shape)


@dataclass(frozen=True)
class _Axis:
    """The two neighbours of every position on one axis of its map.

    Attributes:
        size: (L, 1) pixels of the map.
        first: index of the lower neighbour within the map, float32.
        beyond: distance of the position from it, in pixels.
        low: its bilinear share; 0 where the position is a pixel away or more.
        high: the share of the next pixel; 0 where the map has only one.
    """

    size: Tensor
    first: Tensor
    beyond: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, position: Tensor, size: Tensor) -> _Axis:
        """Of positions in [0, 1] of the size.  A share is a hat: 1 at its pixel, 0 from a pixel away."""
        beyond = (position * size).sub_(0.5)
        first = beyond.floor().clamp_(torch.zeros_like(size), (size - 2).clamp(min=0))
        beyond.sub_(first)
        low = torch.rsub(beyond.abs(), 1).clamp_(min=0)
        peak = (size > 1) * 2.0 - 1  # below 0 the hat is nowhere
        high = torch.sub(peak, (beyond - 1).abs_()).clamp_(min=0)
        return cls(size, first, beyond, low, high)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """How the two shares change with the position in [0, 1]."""
        return (
            _slope(self.beyond) * self.size,
            _slope(self.beyond - 1) * (self.size * (self.size > 1)),
        )


def _slope(distance: Tensor) -> Tensor:
    """The hat's: up to its peak, down from there on."""
    return torch.where(distance < 0, 1.0, -1.0) * ((distance >= -1) & (distance < 1))


@dataclass(frozen=True)
class _Corners:
    """The four pixels round every sampling point and their shares, all (B, Q, heads, L, points)."""

    x: _Axis
    y: _Axis
    weights: Tensor
    first: Tensor
    steps: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes, tokens: int) -> _Corners:
        """Of the arguments of `sample_levels`."""
        batch, _, heads, _, _ = x.shape
        *sizes, steps = _strides(tuple(shapes), heads, x.device)
        height, width, stride = (size.to(x.dtype) for size in sizes)
        across, upright = _Axis.of(x, width), _Axis.of(y, height)
        first = torch.addcmul(across.first * heads, upright.first, stride).int()
        owner = torch.arange(batch, device=x.device, dtype=torch.int32) * (tokens * heads)
        # a position that is not a number reads the first row, not some other memory
        return cls(across, upright, weights, first.clamp_(min=0), owner.view(-1, 1, 1, 1, 1, 1) + steps)

    def rows(self) -> Tensor:
        """(bags, L * points * 4) int32: the rows of upper left, upper right, lower left and lower right pixel."""
        return (self.first[..., None] + self.steps).flatten(0, 2).flatten(1)

    def shares(self) -> Tensor:
        """(bags, L * points * 4): what each of them weighs."""
        across = torch.stack((self.x.low, self.x.high), dim=-1)
        upright = torch.stack((self.y.low * self.weights, self.y.high * self.weights), dim=-1)
        return (upright[..., None] * across[..., None, :]).flatten(0, 2).flatten(1)

    def gradients(self, of_shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, y and the attention weights, given that of the shares."""
        upper, lower = of_shares.view(*self.first.shape, 2, 2).unbind(dim=-2)
        # across: what the sum along x gives to each row of pixels; then along y
        upper_sum = upper[..., 0] * self.x.low + upper[..., 1] * self.x.high
        lower_sum = lower[..., 0] * self.x.low + lower[..., 1] * self.x.high
        left, right = self.x.slopes()
        top, bottom = self.y.slopes()
        of_x = self.y.low * (upper[..., 0] * left + upper[..., 1] * right)
        of_x += self.y.high * (lower[..., 0] * left + lower[..., 1] * right)
        of_y = upper_sum * top + lower_sum * bottom
        return of_x * self.weights, of_y * self.weights, upper_sum * self.y.low + lower_sum * self.y.high


@lru_cache(maxsize=64)  # two calls a layer and frame
def _strides(
    shapes: tuple[tuple[int, int], ...], heads: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sizes of the levels and distances in the table, made where autograd may keep them, whatever the caller's mode.

    Returns:
        Height, width, and rows from a pixel to the one below, (L, 1) float32 each; and the rows from the table's
        first to the four corners at a level's first pixel, (1, 1, heads, L, 1, 4) int32.
    """
    with torch.inference_mode(False):
        sizes = torch.tensor(shapes, dtype=torch.float32)
        starts = list(itertools.accumulate((h * w for h, w in shapes[:-1]), initial=0))
        pixels = [
            [start + down * w * (h > 1) + right * (w > 1) for down in (0, 1) for right in (0, 1)]
            for start, (h, w) in zip(starts, shapes, strict=True)
        ]
        rows = torch.tensor(pixels)[None, :, None] * heads + torch.arange(heads).view(-1, 1, 1, 1)
        made = (sizes[:, :1], sizes[:, 1:], sizes[:, 1:] * heads, rows.int()[None, None])
        height, width, stride, steps = (x.to(device, non_blocking=True) for x in made)
        return height, width, stride, steps
