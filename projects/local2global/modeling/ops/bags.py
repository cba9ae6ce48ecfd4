"""The sum at the heart of deformable attention, as bags of an embedding table.

A bag is one (query, head), its entries are the four pixels round each sampling point, its weights attention times
bilinear.  One function of autograd holds the whole: only its inputs are kept for the way back, where the sum over the
entries that read a row is one more sum over bags.

On a GPU, `sampling_triton.py` does the same in one kernel each way, if Triton is there and the kernel's first results
are those of the bags; with `L2G_TRITON=0` in the environment, never.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: (height, width) of every feature level.
Shapes = Sequence[tuple[int, int]]

#: (values, x, y, weights, levels) to the sum.
Kernel = Callable[..., Tensor]

_log = logging.getLogger(__name__)

#: So many sampled pixels for every token are read in the time of the token's projection.
ENTRIES_A_TOKEN = 20

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
    kernel = _kernel(values, x)
    if kernel is not None:
        return kernel(values, x, y, weights, _levels(tuple(shapes), values.device))
    if torch.is_grad_enabled():
        return _Sampling.apply(values, x, y, weights, tuple(shapes))
    return _sample(values, x, y, weights, tuple(shapes))


def samples_first(x: Tensor, tokens: Tensor) -> bool:
    """Whether (B, Q, heads, L, points) samples of (B, S, C) tokens cost less than a product of all tokens.

    So it is on a CPU where a hundred queries look at a frame; with gradients, all that is read would be kept.
    """
    entries = 4 * x[0].numel()
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and entries <= ENTRIES_A_TOKEN * tokens.shape[1]
    )


def sample_tokens(
    tokens: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`sample_levels` of tokens that all heads share, each in its own places.

    Args:
        tokens: (B, S, C).
        shapes: as there.
        x: as there.
        y: as there.
        weights: as there.
        padding: (B, S) bool, True at tokens that count for nothing.

    Returns:
        (B, Q, heads, C) sums, at least float32, and (B, Q, heads) how much of the weights lies on tokens that count.
    """
    bags = x.shape[:3]
    corners = _Corners.of(x, y, weights, shapes, tokens.shape[1])
    table = _table(tokens)
    rows, shares = corners.rows() // bags[2], corners.shares().to(table.dtype)
    if padding is not None:
        shares = shares.masked_fill(padding.flatten()[rows], 0.0)
    summed = F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    return summed.view(*bags, -1), shares.sum(dim=-1).view(bags)


def _kernel(values: Tensor, x: Tensor) -> Kernel | None:
    """The kernel for such values, if there is one to be trusted on their device."""
    if not values.is_cuda or torch.are_deterministic_algorithms_enabled():
        return None
    heads, depth, levels, points = *values.shape[2:], *x.shape[3:]
    key = (values.device, values.dtype, heads, depth, levels, points)
    # what is being recorded cannot stop to compare numbers; a first call outside has
    recorded = torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
    if key not in _KERNELS and not recorded:
        _KERNELS[key] = _trusted(*key)
    return _KERNELS.get(key)


_KERNELS: dict[tuple[Any, ...], Kernel | None] = {}


def _trusted(
    device: torch.device, dtype: torch.dtype, heads: int, depth: int, levels: int, points: int
) -> Kernel | None:
    """The kernel, if it runs on a device and ends at the numbers of the bags on a CPU; else None, and one warning.

    A kernel that a driver or a compiler takes amiss must not end a training that can do without it.
    """
    if os.environ.get("L2G_TRITON") == "0":
        return None
    try:
        from .triton_kernel import sample
    except ImportError:  # no Triton for this system, or a torch before its `triton_op`
        return None
    try:
        worst = _difference(sample, device, dtype, heads, depth, levels, points)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    else:
        if worst <= (1e-3 if dtype.itemsize >= 4 else 3e-2):
            return sample
        reason = f"its results are {worst:.1e} of their size off"
    _log.warning("The sampling kernel is not used for %s on %s: %s", dtype, device, reason)
    return None


def _difference(
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    depth: int,
    levels: int,
    points: int,
) -> float:
    """How far the kernel's sum and gradients are from the bags', as a part of the largest entry of each."""
    shapes = tuple((2 + 3 * level, 5 + 2 * level) for level in range(levels))
    draw = torch.Generator().manual_seed(0)
    places = (2, 19, heads, levels, points)  # some beyond the frame's edges
    x, y = (torch.rand(places, generator=draw) * 1.4 - 0.2 for _ in "xy")
    values = torch.randn(2, sum(h * w for h, w in shapes), heads, depth, generator=draw).to(dtype)
    given = [values, x, y, torch.rand(places, generator=draw)]
    due = torch.randn(2, 19, heads * depth, generator=draw).to(dtype)

    def results(function: Callable[..., Tensor], inputs: list[Tensor], due: Tensor) -> list[Tensor]:
        inputs = [one.clone().requires_grad_() for one in inputs]
        out = function(*inputs)
        found = (out, *torch.autograd.grad(out, inputs, due.to(out.dtype)))
        return [one.detach().float().cpu() for one in found]

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        bags = results(lambda *a: _Sampling.apply(*a, shapes), [one.float() for one in given], due.float())
        kernels = results(
            lambda *a: kernel(*a, _levels(shapes, device)), [one.to(device) for one in given], due.to(device)
        )
    return max(
        float(((one - other).abs().max() / one.abs().max()).nan_to_num(torch.inf))
        for one, other in zip(bags, kernels, strict=True)
    )


@lru_cache(maxsize=64)
def _levels(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first token of every level."""
    with torch.inference_mode(False):
        starts = itertools.accumulate((h * w for h, w in shapes[:-1]), initial=0)
        numbers = [(*shape, start) for shape, start in zip(shapes, starts, strict=True)]
        return torch.tensor(numbers, dtype=torch.int32).to(device, non_blocking=True)


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
    over bags, several times as fast.
    """
    entries = rows.shape[1]
    rows, order = rows.flatten().sort()
    order = order.int()  # half the bytes: embedding_bag takes either
    # where each row's entries start: neither bincount, which waits for the device, nor a search
    starts = torch._convert_indices_from_coo_to_csr(rows, len(table), out_int32=True)
    shares = shares.flatten().index_select(0, order)
    # a shift where it will do: a CPU has no vector instruction for whole division
    bags = order >> entries.bit_length() - 1 if entries & entries - 1 == 0 else order // entries
    return F.embedding_bag(
        bags, gradient, starts, per_sample_weights=shares, mode="sum", include_last_offset=True
    )


def _of_shares(table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the shares, (bags, entries): each is a row of the table times its bag's gradient."""
    bags, entries = rows.shape
    # a sparse matrix has room for no more entries in a row than it has columns
    if rows.device.type == "cpu" and entries <= len(table) and not torch.compiler.is_compiling():
        # products at the places of a sparse matrix: the same numbers in a third to a fifth of the time
        ends = torch.arange(0, rows.numel() + 1, entries, dtype=rows.dtype)
        places = _sparse(ends, rows.flatten(), table.new_zeros(rows.numel()), (bags, len(table)))
        torch.sparse.sampled_addmm(places, gradient, table.mT, beta=0.0, out=places)
        return places.values().view(rows.shape)
    own = torch.arange(bags, device=rows.device, dtype=rows.dtype)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, table, rows.flatten(), own * entries, own.repeat_interleave(entries), 0
    ).view(rows.shape)


def _sparse(ends: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A matrix of compressed rows, without torch's word that these are in beta, said once a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(ends, columns, values, size, check_invariants=False)


@dataclass(frozen=True)
class _Axis:
    """The two neighbours of every position on one axis of its map.

    Attributes:
        size: (heads, L, points) pixels of the map.
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
    steps: tuple[Tensor, ...]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor, shapes: Shapes, tokens: int) -> _Corners:
        """Of the arguments of `sample_levels`."""
        batch, _, heads, _, points = x.shape
        (height, width, stride), steps = _strides(shapes, heads, points, x.device)
        across, upright = _Axis.of(x, width.to(x.dtype)), _Axis.of(y, height.to(x.dtype))
        # a position that is not a number reads the first row, not some other memory
        first = torch.addcmul(across.first * heads, upright.first, stride.to(x.dtype)).int().clamp_(min=0)
        if batch > 1:
            owner = torch.arange(batch, device=x.device, dtype=torch.int32) * (tokens * heads)
            first += owner.view(-1, 1, 1, 1, 1)
        return cls(across, upright, weights, first, steps)

    def rows(self) -> Tensor:
        """(bags, 4 * L * points) int32: the rows of upper left, upper right, lower left and lower right pixels."""
        return torch.stack([self.first + step for step in self.steps], dim=3).flatten(0, 2).flatten(1)

    def shares(self) -> Tensor:
        """The same of what each of them weighs."""
        top, bottom = self.y.low * self.weights, self.y.high * self.weights
        products = [row * column for row in (top, bottom) for column in (self.x.low, self.x.high)]
        return torch.stack(products, dim=3).flatten(0, 2).flatten(1)

    def gradients(self, of_shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, y and the attention weights, given that of the shares."""
        batch, queries, heads, *points = self.first.shape
        every = of_shares.view(batch, queries, heads, 4, *points)
        upper_left, upper_right, lower_left, lower_right = every.unbind(dim=3)
        # across: what the sum along x gives to each row of pixels; then along y
        upper_sum = upper_left * self.x.low + upper_right * self.x.high
        lower_sum = lower_left * self.x.low + lower_right * self.x.high
        left, right = self.x.slopes()
        top, bottom = self.y.slopes()
        of_x = self.y.low * (upper_left * left + upper_right * right)
        of_x += self.y.high * (lower_left * left + lower_right * right)
        of_y = upper_sum * top + lower_sum * bottom
        return of_x * self.weights, of_y * self.weights, upper_sum * self.y.low + lower_sum * self.y.high


def level_sizes(shapes: Shapes, heads: int, points: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Width and height of its level for every point of a query, (heads, L, points) float32 each."""
    (height, width, _), _ = _strides(shapes, heads, points, device)
    return width, height


def _strides(
    shapes: Shapes, heads: int, points: int, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `_make_strides` made before, but for a compiler: that keeps them as constants of its own."""
    make = _make_strides if torch.compiler.is_compiling() else _kept_strides
    return make(tuple(shapes), heads, points, device)


def _make_strides(
    shapes: tuple[tuple[int, int], ...], heads: int, points: int, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sizes of the levels and distances in the table, of every point of a query: (heads, L, points) each.

    Written out, because a CPU is slow to repeat a number four times in its innermost loop, and a compiler gives up its
    vector instructions for it; made where autograd may keep them, whatever the caller's mode.

    Returns:
        Height, width, and rows from a pixel to the one below, float32; and int32 rows from the table's first to the
        four corners at a level's first pixel.
    """
    starts = list(itertools.accumulate((h * w for h, w in shapes[:-1]), initial=0))

    def of_points(numbers: list[int], kind: torch.dtype, step: int = 0) -> Tensor:
        every = [number + step * head for head in range(heads) for number in numbers for _ in range(points)]
        every_point = torch.tensor(every, dtype=kind).to(device, non_blocking=True)
        return every_point.view(heads, len(numbers), points)

    with torch.inference_mode(False):
        sizes = [
            of_points([h for h, _ in shapes], torch.float32),
            of_points([w for _, w in shapes], torch.float32),
            of_points([w * heads for _, w in shapes], torch.float32),
        ]
        corners = [
            [
                heads * (start + down * w * (h > 1) + right * (w > 1))
                for start, (h, w) in zip(starts, shapes, strict=True)
            ]
            for down in (0, 1)
            for right in (0, 1)
        ]
        return tuple(sizes), tuple(of_points(corner, torch.int32, step=1) for corner in corners)


_kept_strides = lru_cache(maxsize=64)(_make_strides)  # two calls a layer and frame
