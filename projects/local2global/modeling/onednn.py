"""What a CPU computes without gradients, by oneDNN: a layer and what follows it in one call, its weights kept ready.

torch's own product of float32 matrices is half as fast on some CPUs, frozen norms would be folded into their
convolutions on every call, and autocast would convert every weight on every call.  Here the weights of a layer are
brought into the kernel's type and layout once, and again when they, the type or a map's size change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Kept:
    """A layer's weight and bias as the kernel takes them, and what they were made of."""

    sources: tuple[Tensor, ...]
    state: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None

    def is_of(self, sources: Sequence[Tensor], state: tuple[Any, ...]) -> bool:
        return self.state == state and all(a is b for a, b in zip(self.sources, sources, strict=True))


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def takes(weight: Tensor, x: Tensor) -> bool:
    """Whether a layer with this weight can be computed here: on a CPU, nothing kept for gradients, nothing compiled."""
    return (
        x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or weight.is_inference())
        and _is_supported(_dtype(x), weight.dtype)
    )


def linear(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    """The layer, and a ReLU if asked: (..., in) to (..., out)."""
    dtype = _dtype(x)

    def make() -> tuple[Tensor, Tensor | None]:
        weight = layer.weight.detach().to(dtype)
        return torch.ops.mkldnn._reorder_linear_weight(weight), _cast(layer.bias, dtype)

    kept = _kept(layer, (layer.weight, layer.bias), (dtype,), make)
    after = "relu" if relu else "none"
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), kept.weight, kept.bias, after, [], "")


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

    kept = _kept(layer, (layer.weight, layer.bias, *frozen), (dtype, tuple(x.shape)), make)
    after = "relu" if relu else "none"
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, kept.weight, kept.bias, *place, after, [], "")
    add = add.to(dtype, memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise_(
        add, x, kept.weight, kept.bias, *place, "add", None, "relu" if relu else None, [], None
    )


def _kept(
    layer: nn.Module,
    sources: Sequence[Tensor | None],
    how: tuple[Any, ...],
    make: Callable[[], tuple[Tensor, Tensor | None]],
) -> _Kept:
    given = tuple(source for source in sources if source is not None)
    # a tensor's version counts what is written into it, its address changes where it is moved
    state = (*how, *((source.data_ptr(), source._version) for source in given))
    kept = _KEPT.get(layer)
    if kept is None or not kept.is_of(given, state):
        kept = _KEPT[layer] = _Kept(given, state, *make())
    return kept


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)


def _is_supported(dtype: torch.dtype, of_weight: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or of_weight != torch.float32:
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
