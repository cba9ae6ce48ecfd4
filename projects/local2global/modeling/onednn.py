"""What a CPU computes without gradients, by oneDNN: a layer and what follows it in one call, its weights kept ready.

torch's own product of float32 matrices is half as fast on some CPUs, frozen norms would be folded into their
convolutions on every call, and autocast would convert every weight on every call.  Here the weights of a layer are
brought into the kernel's type and layout once, and again when they, the type or a map's size change.  `torch.compile`
takes a linear layer as it is and fuses what lies between two.

Weights are written under `no_grad`, loaded or replaced: what goes through `.data` or numpy's memory is not counted by
torch, and not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from .ops.bags import ROWS_AT_A_TIME


@dataclass(frozen=True)
class _Kept:
    """A layer's weight and bias as the kernel takes them, and what else they were made of."""

    sources: tuple[Tensor, ...]
    state: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None

    def is_of(self, sources: Sequence[Tensor], state: tuple[Any, ...]) -> bool:
        return (
            self.state == state
            and len(self.sources) == len(sources)
            and all(a is b for a, b in zip(self.sources, sources, strict=True))
        )


def _types() -> frozenset[torch.dtype]:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return frozenset()
    half = {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
    return frozenset({torch.float32, *half})


_TYPES = _types()  # that oneDNN takes on this CPU
_KEPT = WeakIdKeyDictionary()  # of every weight
# a fused step writes weights and does not count it in their versions
register_optimizer_step_post_hook(lambda *_: _KEPT.clear())


def takes(weight: Tensor, x: Tensor) -> bool:
    """Whether a layer with this weight can be computed here: on a CPU, nothing kept for gradients, nothing traced."""
    return (
        x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and weight.dtype == torch.float32
        and _dtype(x) in _TYPES
    )


def linear(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    """The layer, and a ReLU if asked: (..., in) to (..., out)."""
    given = x.to(_dtype(x)), layer.weight, layer.bias, relu
    # a compiler takes the operator as it is; called directly it costs less
    out: Tensor = torch.ops.local2global.linear(*given) if torch.compiler.is_compiling() else _linear(*given)
    return out


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    def make() -> tuple[Tensor, Tensor | None]:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(x.dtype))
        return packed, _cast(bias, x.dtype)

    kept = _kept((weight, bias), (x.dtype,), make)
    after = "relu" if relu else "none"
    return torch.ops.mkldnn._linear_pointwise(x, kept.weight, kept.bias, after, [], "")


def two_layers(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """W2 relu(W1 x) for a compiler: (..., in) to (..., out); what lies between stays in the CPU's cache."""
    weights = first.weight, first.bias, second.weight, second.bias
    out: Tensor = torch.ops.local2global.two_layers(x.to(_dtype(x)), *weights)
    return out


def _two_layers(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    parts = [
        _linear(_linear(some, w1, b1, True), w2, b2, False) for some in x.flatten(0, -2).split(ROWS_AT_A_TIME)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], len(w2))


def _operator(name: str, schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """An operator without gradients; `torch.library.custom_op` would cost as much a call as a small product."""
    torch.library.define(f"local2global::{name}", schema)
    torch.library.impl(f"local2global::{name}", "CPU", function)
    torch.library.register_fake(f"local2global::{name}", fake)


_operator(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor",
    _linear,
    lambda x, weight, bias, relu: x.new_empty((*x.shape[:-1], len(weight))),
)
_operator(
    "two_layers",
    "(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2) -> Tensor",
    _two_layers,
    lambda x, w1, b1, w2, b2: x.new_empty((*x.shape[:-1], len(w2))),
)


def convolution(
    layer: nn.Conv2d,
    x: Tensor,
    norm: Any = None,
    add: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The layer on (B, in, H, W), with all that follows it.

    Args:
        layer: the convolution.
        x: its input.
        norm: has `affine()`, the scale and shift of every output channel.
        add: (B, out, H', W') of what is added then; it is overwritten with the result.
        relu: whether a ReLU comes last.
    """
    dtype = _dtype(x)
    # the only layout in which every type and shape can have its sum and its ReLU in the same call
    x = x.to(dtype, memory_format=torch.channels_last)
    frozen = () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    place = (layer.padding, layer.stride, layer.dilation, layer.groups)

    def make() -> tuple[Tensor, Tensor | None]:
        weight, bias = layer.weight.detach(), layer.bias
        if norm is not None:
            scale, shift = norm.affine()
            weight, bias = weight * scale.view(-1, 1, 1, 1), shift if bias is None else shift + scale * bias
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight.to(dtype), *place, x.shape)
        return packed, _cast(bias, dtype)

    kept = _kept((layer.weight, layer.bias, *frozen), (dtype, tuple(x.shape), place), make)
    after = "relu" if relu else "none"
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, kept.weight, kept.bias, *place, after, [], "")
    add = add.to(dtype, memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise_(
        add, x, kept.weight, kept.bias, *place, "add", None, "relu" if relu else None, [], None
    )


def _kept(
    sources: tuple[Tensor | None, ...],
    how: tuple[Any, ...],
    make: Callable[[], tuple[Tensor, Tensor | None]],
) -> _Kept:
    """The first of the sources, a layer's weight, is what the rest is kept for."""
    given = tuple(source for source in sources if source is not None)
    if any(source.is_inference() for source in given):  # these tell nobody when they are written to
        return _Kept((), (), *make())
    # a tensor's version counts what is written into it, its address changes where it is moved
    state = (*how, *((source.data_ptr(), source._version) for source in given))
    kept = _KEPT.get(given[0])
    if kept is None or not kept.is_of(given[1:], state):
        kept = _KEPT[given[0]] = _Kept(given[1:], state, *make())
    return kept


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)
