"""The backbone: images to named feature maps.

Any module works that returns a dict of (B, C, H / stride, W / stride) maps; `ResNet` is the paper's.  It is built from
its sizes and never downloads anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.names import HF_RESNET, rename
from .layers import convolution


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine terms are constants: buffers, not parameters."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        scale, shift = self.affine()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def affine(self) -> tuple[Tensor, Tensor]:
        """The whole norm as (C,) scale and shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


@dataclass(frozen=True)
class GroupNorms:
    """Makes GroupNorms, for a backbone that is trained from scratch, where frozen statistics would mean nothing."""

    channels_per_group: int = 8

    def __call__(self, channels: int) -> nn.GroupNorm:
        """The norm of so many channels."""
        return nn.GroupNorm(max(1, channels // self.channels_per_group), channels)


class ResNet(nn.Module):
    """ResNet (He et al., CVPR 2016; stride in the 3x3), built by transformers, under detectron2's names on disk.

    Args:
        depths: blocks in res2 .. res5.
        hidden_sizes: their channels.
        embedding_size: channels of the stem.
        layer_type: "bottleneck" or "basic".
        norm: makes the norm of so many channels.
        freeze_stem: the stem's convolution doesn't train (detectron2's FREEZE_AT 1).
        stride_in_1x1: halve in the first convolution of a bottleneck, as the Caffe weights (detectron2's MSRA) do.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        embedding_size: int = 64,
        layer_type: str = "bottleneck",
        norm: Callable[[int], nn.Module] = FrozenBatchNorm,
        freeze_stem: bool = True,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetModel  # a second to import: only when a ResNet is built

        config = ResNetConfig(
            depths=list(depths),
            hidden_sizes=list(hidden_sizes),
            embedding_size=embedding_size,
            layer_type=layer_type,
            downsample_in_bottleneck=stride_in_1x1,
        )
        network = ResNetModel(config)
        self.embedder, self.encoder = network.embedder, network.encoder
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, norm(child.num_features))
        self.embedder.requires_grad_(not freeze_stem)
        self.channels = {f"res{i + 2}": channels for i, channels in enumerate(hidden_sizes)}
        self._ours = {name: rename(name, HF_RESNET) for name in self.state_dict()}
        self._register_state_dict_hook(_rename_saved)
        self._register_load_state_dict_pre_hook(self._rename_loaded)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to res2 .. res5 at strides 4 .. 32."""
        # channels last: convolutions of one pixel are matrix products, and tokens come out of maps without a copy
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.embedder.pooler(_convolved(self.embedder.embedder, images))
        maps = {}
        for name, stage in zip(self.channels, self.encoder.stages, strict=True):
            blocks: Any = stage.layers
            for block in blocks:
                x = _residual(block, x)
            maps[name] = x
        return maps

    def _rename_loaded(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for theirs, ours in self._ours.items():
            if prefix + ours in state:
                state[prefix + theirs] = state.pop(prefix + ours)


def _residual(block: Any, x: Tensor) -> Tensor:
    """A block of transformers' ResNet."""
    *first, last = block.layer
    out = x
    for layer in first:
        out = _convolved(layer, out)
    # nobody needs x behind its block: the maps that are returned are those that a block with a shortcut reads
    identity = isinstance(block.shortcut, nn.Identity)
    return _convolved(last, out, x if identity else _convolved(block.shortcut, x, relu=False))


def _convolved(layer: Any, x: Tensor, add: Tensor | None = None, relu: bool = True) -> Tensor:
    """Convolution and norm, then a sum, then a ReLU; a frozen norm is a scale and a shift of the convolution."""
    if isinstance(layer.normalization, FrozenBatchNorm):
        return convolution(layer.convolution, x, layer.normalization, add, relu)
    out = layer.normalization(convolution(layer.convolution, x))
    out = out if add is None else out + add
    return out.relu() if relu else out


def _rename_saved(module: ResNet, state: dict[str, Any], prefix: str, _: Any) -> None:
    for theirs, ours in module._ours.items():
        if prefix + theirs in state:
            state[prefix + ours] = state.pop(prefix + theirs)
