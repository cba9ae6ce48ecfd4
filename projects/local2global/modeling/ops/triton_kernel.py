"""Deformable sampling as one Triton kernel forward and one backward, for GPUs.

A program handles a block of queries of one head and sample, and loops over their sampling points.  It reads only the
inputs and writes only the results.  The embedding-bag version materialises four rows and weights per point.

Values may be bfloat16 or float16; locations, weights and sums are float32.  Backward adds up the values' gradient by
float32 atomics, so the order of summation is not deterministic.

The kernel's results are tested in Triton's interpreter, and it compiles for sm_80, sm_90 and sm_100.  It has not run on
a GPU yet, so its first call is compared with the embedding-bag implementation (`ops/__init__.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

#: Below 1024 programs, use smaller query blocks.
BUSY = 1024


@triton.jit
def _block(  # type: ignore[no-untyped-def]
    tokens, queries, heads, DEPTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr
):
    """A program's bags and which are active, the offset of its sample and head, its channels and which are active."""
    clip, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, BLOCK_D)[None, :]
    bag = (clip * queries + query) * heads + head
    return bag, query < queries, (clip * tokens * heads + head) * DEPTH + depth, depth, depth < DEPTH


@triton.jit
def _corners(x, y, width, height, start):  # type: ignore[no-untyped-def]
    """Distances of points from their upper left pixel, its token, and which of the four pixels are in the map."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    # a pixel outside the map is never read
    west, east = (left >= 0) & (left < width), (left >= -1) & (left < width - 1)
    north, south = (top >= 0) & (top < height), (top >= -1) & (top < height - 1)
    column = tl.where(west | east, left, 0.0).to(tl.int32)
    row = tl.where(north | south, top, 0.0).to(tl.int32)
    # points far outside, even at infinity, have weight 0; NaN stays NaN
    beside = tl.where((west | east) | (x != x), x - left, 0.0)
    below = tl.where((north | south) | (y != y), y - top, 0.0)
    return beside, below, start + row * width + column, west, east, north, south


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    values, x, y, weights, levels, out,
    tokens, queries, heads,
    DEPTH: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    bag, active, beginning, depth, in_depth = _block(tokens, queries, heads, DEPTH, BLOCK_Q, BLOCK_D)
    table = values + beginning
    stride = heads * DEPTH
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=KIND)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = bag * (LEVELS * POINTS) + level * POINTS + point
            a, b, token, west, east, north, south = _corners(
                tl.load(x + at, mask=active, other=0).to(KIND),
                tl.load(y + at, mask=active, other=0).to(KIND),
                width, height, start,
            )  # fmt: skip
            weight = tl.load(weights + at, mask=active, other=0).to(KIND)
            place = table + token.to(tl.int64)[:, None] * stride
            nw = tl.load(place, mask=(active & north & west)[:, None] & in_depth, other=0).to(KIND)
            ne = tl.load(place + stride, mask=(active & north & east)[:, None] & in_depth, other=0).to(KIND)
            place += width * stride
            sw = tl.load(place, mask=(active & south & west)[:, None] & in_depth, other=0).to(KIND)
            se = tl.load(place + stride, mask=(active & south & east)[:, None] & in_depth, other=0).to(KIND)
            upper = nw * (1 - a)[:, None] + ne * a[:, None]
            lower = sw * (1 - a)[:, None] + se * a[:, None]
            total += (upper * (1 - b)[:, None] + lower * b[:, None]) * weight[:, None]
    tl.store(out + bag[:, None] * DEPTH + depth, total, mask=active[:, None] & in_depth)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    values, x, y, weights, levels, gradient, grad_values, grad_x, grad_y, grad_weights,
    tokens, queries, heads,
    DEPTH: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    bag, active, beginning, depth, in_depth = _block(tokens, queries, heads, DEPTH, BLOCK_Q, BLOCK_D)
    stride = heads * DEPTH
    grad_out = tl.load(gradient + bag[:, None] * DEPTH + depth, mask=active[:, None] & in_depth, other=0).to(
        KIND
    )
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = bag * (LEVELS * POINTS) + level * POINTS + point
            a, b, token, west, east, north, south = _corners(
                tl.load(x + at, mask=active, other=0).to(KIND),
                tl.load(y + at, mask=active, other=0).to(KIND),
                width, height, start,
            )  # fmt: skip
            weight = tl.load(weights + at, mask=active, other=0).to(KIND)
            place = beginning + token.to(tl.int64)[:, None] * stride
            below = place + width * stride
            is_nw, is_ne = (
                (active & north & west)[:, None] & in_depth,
                (active & north & east)[:, None] & in_depth,
            )
            is_sw, is_se = (
                (active & south & west)[:, None] & in_depth,
                (active & south & east)[:, None] & in_depth,
            )
            # dot products of each corner's values with the output's gradient
            nw = tl.sum(tl.load(values + place, mask=is_nw, other=0).to(KIND) * grad_out, axis=1)
            ne = tl.sum(tl.load(values + place + stride, mask=is_ne, other=0).to(KIND) * grad_out, axis=1)
            sw = tl.sum(tl.load(values + below, mask=is_sw, other=0).to(KIND) * grad_out, axis=1)
            se = tl.sum(tl.load(values + below + stride, mask=is_se, other=0).to(KIND) * grad_out, axis=1)
            upper, lower = nw * (1 - a) + ne * a, sw * (1 - a) + se * a
            tl.store(grad_weights + at, upper * (1 - b) + lower * b, mask=active)
            across = (ne - nw) * (1 - b) + (se - sw) * b
            tl.store(grad_x + at, across * width * weight, mask=active)
            tl.store(grad_y + at, (lower - upper) * height * weight, mask=active)
            part = grad_out * weight[:, None]
            above, under = part * (1 - b)[:, None], part * b[:, None]
            tl.atomic_add(grad_values + place, above * (1 - a)[:, None], is_nw, "relaxed")
            tl.atomic_add(grad_values + place + stride, above * a[:, None], is_ne, "relaxed")
            tl.atomic_add(grad_values + below, under * (1 - a)[:, None], is_sw, "relaxed")
            tl.atomic_add(grad_values + below + stride, under * a[:, None], is_se, "relaxed")


def _launch(kernel: Any, values: Tensor, x: Tensor, arguments: tuple[Tensor, ...]) -> None:
    """Launch a kernel on `arguments`, followed by the sizes of `values` and `x`."""
    batch, tokens, heads, depth = values.shape
    queries, levels, points = x.shape[1], *x.shape[3:]
    if not batch * queries * heads:
        return
    block = 16 if batch * heads * triton.cdiv(queries, 16) >= BUSY else 4
    # torch.compile traces wrapped kernels only; interpreted kernels cannot be wrapped
    run = wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
    with torch.cuda.device_of(values):  # Triton launches on the current GPU
        run[triton.cdiv(queries, block), batch * heads](
            *arguments, tokens, queries, heads, DEPTH=depth, LEVELS=levels, POINTS=points, BLOCK_Q=block,
            BLOCK_D=triton.next_power_of_2(depth), num_warps=1 if block == 4 else 2,
            KIND=tl.float64 if values.dtype == torch.float64 else tl.float32,
        )  # fmt: skip


@triton_op("local2global::sample", mutates_args={})
def sample(values: Tensor, x: Tensor, y: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Deformable sampling, as `ops.deformable_sample`; `levels` is the `ops.level_table` of the shapes."""
    values, x, y, weights = (tensor.contiguous() for tensor in (values, x, y, weights))
    out = values.new_empty(*x.shape[:2], values.shape[2] * values.shape[3])
    _launch(_forward, values, x, (values, x, y, weights, levels, out))
    return out


@triton_op("local2global::sample_backward", mutates_args={})
def sample_backward(
    values: Tensor, x: Tensor, y: Tensor, weights: Tensor, levels: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the values, x, y and the weights."""
    values, x, y, weights = (tensor.contiguous() for tensor in (values, x, y, weights))
    wide = torch.promote_types(values.dtype, torch.float32)
    grad_values = torch.zeros_like(values, dtype=wide)
    grad_points = torch.empty_like(x), torch.empty_like(y), torch.empty_like(weights)
    arguments = (values, x, y, weights, levels, gradient.contiguous(), grad_values, *grad_points)
    _launch(_backward, values, x, arguments)
    return grad_values.to(values.dtype, copy=True), *grad_points


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *sample_backward(*ctx.saved_tensors, gradient), None


sample.register_autograd(_differentiate, setup_context=_setup_context)
