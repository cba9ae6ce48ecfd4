"""Matrix products with a way back: the linear layers and folded convolutions in which a training step spends its time.

In float32 on a CPU they are oneDNN's where torch has it: from a fifth faster than the product that torch takes
otherwise to twice as fast, by the processor, and a ReLU costs nothing.  What is cheap to make again is not kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .ops.bags import ROWS_AT_A_TIME


def linear(layer: nn.Module, x: Tensor, relu: bool = False) -> Tensor:
    """A linear layer, and a ReLU if asked: (..., in) to (..., out)."""
    assert isinstance(layer, nn.Linear)
    if not _by_onednn(x, layer.weight):
        out = layer(x)
        return out.relu_() if relu else out
    return _Linear.apply(x, layer.weight, layer.bias, relu)


def of_rows(x: Tensor, y: Tensor) -> Tensor:
    """Every row of one batch with every row of the other: (B, N, C) and (B, M, C) to (B, N, M)."""
    if not _by_onednn(x, y):
        return x @ y.mT
    parts = [_Linear.apply(one, other, None, False) for one, other in zip(x, y, strict=True)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def two_layers(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """W2 relu(W1 x) for training: (..., in) to (..., out); what lies between, many times as wide, is not kept."""
    return _TwoLayers.apply(x, first.weight, first.bias, second.weight, second.bias)


def scaled_convolution(layer: nn.Conv2d, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The layer's convolution, times (out,) a scale, plus a shift: a frozen norm follows it.

    Gradients don't flow into scale and shift.
    """
    trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not trains or layer.groups != 1 or layer.dilation != (1, 1):
        weight = layer.weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, shift, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _ScaledConvolution.apply(x, layer.weight, scale, shift, layer.stride, layer.padding)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """(..., in) rows and an (out, in) weight to (..., out).  Gradients don't flow through it."""
    if _by_onednn(x, weight):
        last = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, last, [], "")
    out = F.linear(x, weight, bias)
    return out.relu_() if relu else out


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim > 1
        and x.numel() > 0
        and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Linear(torch.autograd.Function):
    """`linear` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """(..., in) to (..., out)."""
        out = product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input, the weight and the bias."""
        x, weight, out = ctx.saved_tensors
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.mT) if of_x else None,
            product(rows.mT, x.flatten(0, -2).mT) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
            None,
        )


class _TwoLayers(torch.autograd.Function):
    """`two_layers` with its gradients; keeps the input only and makes what lies between again on the way back.

    A CPU takes some rows at a time, which stay in its cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        ctx.save_for_backward(x, w1, b1, w2)
        parts = [product(product(some, w1, b1, relu=True), w2, b2) for some in _rows(x)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], len(w2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the input and of both layers' weights and biases."""
        x, *weights = ctx.saved_tensors
        w1, b1, w2 = (weight.to(gradient.dtype) for weight in weights)
        of_w1, of_b1, of_w2 = (torch.zeros_like(weight) for weight in weights)
        parts = []
        for some, due in zip(_rows(x.to(gradient.dtype)), _rows(gradient), strict=True):
            hidden = product(some, w1, b1, relu=True)
            of_w2 += product(due.mT, hidden.mT)
            of_hidden = torch.ops.aten.threshold_backward(product(due, w2.mT), hidden, 0)
            of_w1 += product(of_hidden.mT, some.mT)
            of_b1 += of_hidden.sum(dim=0)
            parts.append(product(of_hidden, w1.mT))
        of_x = (parts[0] if len(parts) == 1 else torch.cat(parts)).view_as(x).to(x.dtype)
        return of_x, of_w1, of_b1, of_w2, gradient.flatten(0, -2).sum(dim=0).to(of_b1.dtype)


class _ScaledConvolution(torch.autograd.Function):
    """`scaled_convolution` with its gradients; keeps its input, but not the scaled weight.

    A convolution of one pixel is a matrix product over the channels of maps with channels last, both ways; left to
    torch, a single thread copies the maps there and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *how: Any) -> Tensor:
        """(B, in, H, W) to (B, out, H', W'); `how` is stride and padding."""
        ctx.save_for_backward(x, weight, scale)
        ctx.how = how
        scaled = weight * scale.view(-1, 1, 1, 1)
        if _is_product(weight, how):
            return product(x.permute(0, 2, 3, 1), scaled.flatten(1), shift).permute(0, 3, 1, 2)
        return F.conv2d(x, scaled, shift, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the weight."""
        x, weight, scale = ctx.saved_tensors
        scale = scale.view(-1, 1, 1, 1)
        scaled, given = (weight * scale).to(gradient.dtype), x.to(gradient.dtype)
        of_x: Tensor | None = None
        of_weight: Tensor | None = None
        if _is_product(weight, ctx.how):
            pixels = gradient.permute(0, 2, 3, 1)
            if ctx.needs_input_grad[0]:
                of_x = product(pixels, scaled.flatten(1).mT).permute(0, 3, 1, 2)
            if ctx.needs_input_grad[1]:
                of_weight = product(pixels.flatten(0, 2).mT, given.permute(0, 2, 3, 1).flatten(0, 2).mT)
        else:
            stride, padding = ctx.how
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(
                gradient, given, scaled, None, stride, padding, (1, 1), False, (0, 0), 1,
                (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False),
            )  # fmt: skip
        if of_weight is not None:
            of_weight = of_weight.view_as(weight).to(weight.dtype) * scale
        return None if of_x is None else of_x.to(x.dtype), of_weight, *[None] * 4


def _is_product(weight: Tensor, how: tuple[Any, ...]) -> bool:
    return weight.shape[2:] == (1, 1) and how == ((1, 1), (0, 0))


def _rows(x: Tensor) -> tuple[Tensor, ...]:
    """(..., C) as (some, C) each: all of them, but on a CPU a cacheful."""
    flat = x.flatten(0, -2)
    return flat.split(ROWS_AT_A_TIME if x.device.type == "cpu" else max(1, len(flat)))
