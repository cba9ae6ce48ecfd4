"""Deformable sampling by `embedding_bag`, for CPUs.

The table's rows are the values of each token and head.  A bag is a (query, head); its entries are the four pixels
around each sampling point, weighted by attention weight times bilinear weight.  One autograd function covers all
steps, so only its inputs are saved for backward.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...structures import Shapes, constant
from .blocks import in_blocks


def sample_bags(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """As `deformable_sample`."""
    if torch.is_grad_enabled():
        return _SampleBags.apply(values, shapes, x, y, weights)
    return _forward(values, shapes, x, y, weights)


def sample_gathers(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """As `deformable_sample`, by one gather per corner: operators that every inference runtime has."""
    table = values.reshape(-1, values.shape[-1])
    corners = _Corners.of(x, y, weights, shapes, values.shape[1])
    rows, entries = (each.unflatten(1, (4, -1)) for each in (corners.rows(), corners.entry_weights()))
    bags = [
        torch.matmul(entries[:, None, i].to(table.dtype), F.embedding(rows[:, i], table)) for i in range(4)
    ]
    return reduce(torch.add, bags).view(*x.shape[:2], -1)


def _forward(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    table, (batch, tokens) = _table(values), values.shape[:2]

    def sample(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        corners = _Corners.of(x, y, weights, shapes, tokens)
        entries = corners.entry_weights().to(table.dtype)
        bags = F.embedding_bag(corners.rows(), table, per_sample_weights=entries, mode="sum")
        return bags.view(batch, -1, values[0, 0].numel())

    if torch.compiler.is_compiling():  # the compiler fuses these steps; blocks would make the graph larger
        return sample(x, y, weights).to(values.dtype)
    return in_blocks(sample, x, y, weights).to(values.dtype)


def _table(values: Tensor) -> Tensor:
    """(B * S * heads, D) rows, at least float32 on a CPU, where converting half-precision rows one by one is slow."""
    table = values.reshape(-1, values.shape[-1])
    if values.device.type != "cpu":
        return table
    return table.to(torch.promote_types(table.dtype, torch.float32))


class _SampleBags(torch.autograd.Function):
    """`sample_bags` with its gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """As `deformable_sample`."""
        ctx.save_for_backward(values, x, y, weights)
        ctx.shapes = shapes
        return _forward(values, shapes, x, y, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values, x, y and the attention weights."""
        values, x, y, weights = ctx.saved_tensors
        table = _table(values)
        corners = _Corners.of(x, y, weights, ctx.shapes, values.shape[1])
        rows = corners.rows()
        gradient = gradient.reshape(len(rows), -1).to(table.dtype)
        grad_values: Tensor | None = None
        grad_points: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.needs_input_grad[0]:
            entries = corners.entry_weights().to(table.dtype)
            grad_values = _grad_table(table, rows, entries, gradient).view_as(values).to(values.dtype)
        if any(ctx.needs_input_grad[2:]):
            grad_points = corners.gradients(_grad_entries(table, rows, gradient).to(x.dtype))
        return grad_values, None, *grad_points


def _grad_table(table: Tensor, rows: Tensor, entries: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the table: a sum over the entries that read each row.

    Sorting the entries by row replaces the scatter by an `embedding_bag` call, which is several times faster.
    """
    per_bag = rows.shape[1]
    rows, order = rows.flatten().sort()
    order = order.int()  # embedding_bag accepts int32, which is half the memory traffic
    # Offsets of the rows; unlike bincount, this does not synchronise with the device.
    offsets = torch._convert_indices_from_coo_to_csr(rows, len(table), out_int32=True)
    entries = entries.flatten().index_select(0, order)
    # A shift replaces the division by a power of two: CPUs have no vector instruction for integer division.
    bags = order >> per_bag.bit_length() - 1 if per_bag & per_bag - 1 == 0 else order // per_bag
    return F.embedding_bag(
        bags, gradient, offsets, per_sample_weights=entries, mode="sum", include_last_offset=True
    )


def _grad_entries(table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the entry weights, (bags, entries): dot products of the rows with their bag's gradient."""
    bags, per_bag = rows.shape
    # A row of a sparse matrix holds at most as many entries as there are columns.
    if rows.device.type == "cpu" and per_bag <= len(table) and not torch.compiler.is_compiling():
        # Products sampled at the entries of a sparse matrix: 3 to 5 times faster than the operator below.
        ends = torch.arange(0, rows.numel() + 1, per_bag, dtype=rows.dtype)
        zeros = table.new_zeros(rows.numel())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            sparse = torch.sparse_csr_tensor(
                ends, rows.flatten(), zeros, (bags, len(table)), check_invariants=False
            )
        torch.sparse.sampled_addmm(sparse, gradient, table.mT, beta=0.0, out=sparse)
        return sparse.values().view(rows.shape)
    bag = torch.arange(bags, device=rows.device, dtype=rows.dtype)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, table, rows.flatten(), bag * per_bag, bag.repeat_interleave(per_bag), 0
    ).view(rows.shape)


@dataclass(frozen=True)
class _Axis:
    """The two pixels next to every sampling point, along one axis.

    Attributes:
        size: (heads, L, points) pixels of the level along the axis.
        first: index of the lower pixel, clamped to the map.
        distance: from the lower pixel to the point, in pixels.
        low: bilinear weight of the lower pixel; 0 where the point is a pixel or more away.
        high: bilinear weight of the next pixel; 0 if the level has one pixel only.
    """

    size: Tensor
    first: Tensor
    distance: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, position: Tensor, size: Tensor) -> _Axis:
        """Of (B, Q, heads, L, points) positions in [0, 1] of the size."""
        distance = (position * size).sub_(0.5)
        first = distance.floor().clamp_(torch.zeros_like(size), (size - 2).clamp(min=0))
        distance.sub_(first)
        # A bilinear weight is a hat function: 1 at its pixel, 0 from one pixel away.
        low = torch.rsub(distance.abs(), 1).clamp_(min=0)
        peak = (size > 1) * 2.0 - 1  # a negative peak makes the hat zero everywhere
        high = torch.sub(peak, (distance - 1).abs_()).clamp_(min=0)
        return cls(size, first, distance, low, high)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Derivatives of the two bilinear weights by the position in [0, 1]."""
        low = _hat_slope(self.distance) * self.size
        high = _hat_slope(self.distance - 1) * (self.size * (self.size > 1))
        return low, high


def _hat_slope(distance: Tensor) -> Tensor:
    """Slope of the hat function: 1 below its peak, -1 above, 0 from one pixel away."""
    return torch.where(distance < 0, 1.0, -1.0) * ((distance >= -1) & (distance < 1))


@dataclass(frozen=True)
class _Corners:
    """The four pixels around every sampling point, all (B, Q, heads, L, points).

    Attributes:
        x: columns.
        y: rows.
        weights: attention weights.
        first: int32 row of the table of the upper left pixel, without the corner offset in `steps`.
        steps: (heads, L, points) int32 each, added to `first` for the upper left, upper right, lower left and lower
            right pixel.
    """

    x: _Axis
    y: _Axis
    weights: Tensor
    first: Tensor
    steps: tuple[Tensor, ...]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes, tokens: int) -> _Corners:
        """Of the arguments of `deformable_sample`."""
        batch, _, heads, _, points = x.shape

        def per_point(numbers: list[int], dtype: torch.dtype = x.dtype) -> Tensor:
            # Written out: broadcasting over the innermost dimension prevents vector instructions.
            level = constant(numbers, x, dtype)[:, None]
            return level.expand(heads, -1, points).contiguous()

        across = _Axis.of(x, per_point([w for _, w in shapes]))
        down = _Axis.of(y, per_point([h for h, _ in shapes]))
        stride = per_point([w * heads for _, w in shapes])
        # The clamp keeps NaN locations inside the table.
        first = torch.addcmul(across.first * heads, down.first, stride).int().clamp_(min=0)
        if batch > 1:
            sample = torch.arange(batch, device=x.device, dtype=torch.int32) * (tokens * heads)
            first += sample.view(-1, 1, 1, 1, 1)
        head = torch.arange(heads, device=x.device, dtype=torch.int32)[:, None, None]
        starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
        steps = [
            [
                heads * (start + below * w * (h > 1) + right * (w > 1))
                for start, (h, w) in zip(starts, shapes, strict=True)
            ]
            for below in (0, 1)
            for right in (0, 1)
        ]
        return cls(across, down, weights, first, tuple(per_point(step, torch.int32) + head for step in steps))

    def rows(self) -> Tensor:
        """(bags, 4 * L * points) int32 rows of the table."""
        return torch.stack([self.first + step for step in self.steps], dim=3).flatten(0, 2).flatten(1)

    def entry_weights(self) -> Tensor:
        """(bags, 4 * L * points) weights of the rows: attention weight times bilinear weight."""
        top, bottom = self.y.low * self.weights, self.y.high * self.weights
        products = [row * column for row in (top, bottom) for column in (self.x.low, self.x.high)]
        return torch.stack(products, dim=3).flatten(0, 2).flatten(1)

    def gradients(self, grad_entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, y and the attention weights from those of the entry weights."""
        batch, queries, heads, *points = self.first.shape
        corners = grad_entries.view(batch, queries, heads, 4, *points)
        upper_left, upper_right, lower_left, lower_right = corners.unbind(dim=3)
        upper = upper_left * self.x.low + upper_right * self.x.high
        lower = lower_left * self.x.low + lower_right * self.x.high
        left, right = self.x.slopes()
        top, bottom = self.y.slopes()
        grad_x = self.y.low * (upper_left * left + upper_right * right)
        grad_x += self.y.high * (lower_left * left + lower_right * right)
        grad_y = upper * top + lower * bottom
        return grad_x * self.weights, grad_y * self.weights, upper * self.y.low + lower * self.y.high
