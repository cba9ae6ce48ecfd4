"""The backbone: images to feature maps.

`ResNet` is the paper's backbone.  Any module returning a dict of (B, C, H / stride, W / stride) maps can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_range
from .layers import ConvNorm, relu

#: Builds the norm of a number of channels.
MakeNorm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with constant statistics and affine terms, stored as buffers."""

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
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        # One pass over the map; unlike `F.batch_norm`, it saves nothing for backward.
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


@dataclass(frozen=True)
class GroupNorms:
    """Builds GroupNorms, for backbones that train from scratch and have no statistics to freeze."""

    channels_per_group: int = 8

    def __call__(self, channels: int) -> nn.GroupNorm:
        """A GroupNorm of `channels` channels."""
        return nn.GroupNorm(max(1, channels // self.channels_per_group), channels)


class Block(nn.Module):
    """A residual block: its convolutions, each with a norm, a shortcut, and a ReLU after the sum.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the block.
        bottleneck: 1x1, 3x3, 1x1 convolutions of a quarter of the width; otherwise two 3x3 convolutions.
        norm: builds the norms.
        stride_in_1x1: apply a bottleneck's stride in its first convolution instead of its 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        bottleneck: bool,
        norm: MakeNorm,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        conv = partial(ConvNorm, norm=norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1, stride)
        if bottleneck:
            width = out_channels // 4
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = conv(in_channels, width, 1, first)
            self.conv2 = conv(width, width, 3, second)
            self.conv3 = conv(width, out_channels, 1)
        else:
            self.conv1 = conv(in_channels, out_channels, 3, stride)
            self.conv2 = conv(out_channels, out_channels, 3)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        out = self.conv2(relu(self.conv1(x)))
        if self.bottleneck:
            out = self.conv3(relu(out))
        return relu(out, self.shortcut(x))


class ResNet(nn.Module):
    """ResNet (He et al., CVPR 2016); `state_dict` keys follow detectron2.

    Args:
        depths: blocks of res2 .. res5.
        hidden_sizes: channels of res2 .. res5.
        embedding_size: channels of the stem.
        layer_type: "bottleneck" or "basic".
        norm: builds the norm of a number of channels.
        freeze_stem: exclude the stem from training (detectron2's FREEZE_AT 1).
        stride_in_1x1: apply a bottleneck's stride in its first convolution, as detectron2's Caffe weights (MSRA) do.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        embedding_size: int = 64,
        layer_type: str = "bottleneck",
        norm: MakeNorm = FrozenBatchNorm,
        freeze_stem: bool = True,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if layer_type not in ("bottleneck", "basic"):
            raise ValueError(f"layer_type: expected 'bottleneck' or 'basic', got {layer_type!r}")
        self.channels = {f"res{i + 2}": channels for i, channels in enumerate(hidden_sizes)}
        self.stem = nn.ModuleDict({"conv1": ConvNorm(3, embedding_size, 7, 2, norm=norm)})
        channels = embedding_size
        for (name, out_channels), depth in zip(self.channels.items(), depths, strict=True):
            check_range("depths", depth, 1)
            blocks = nn.Sequential()
            for i in range(depth):
                stride = 2 if i == 0 and name != "res2" else 1
                bottleneck = layer_type == "bottleneck"
                blocks.append(Block(channels, out_channels, stride, bottleneck, norm, stride_in_1x1))
                channels = out_channels
            self.add_module(name, blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.stem.requires_grad_(not freeze_stem)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to maps res2 .. res5 of strides 4 .. 32."""
        # In channels_last, 1x1 convolutions are matrix products and maps become tokens without a copy.
        images = images.contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(relu(self.stem["conv1"](images)), 3, stride=2, padding=1)
        maps = {}
        for name in self.channels:
            x = self.get_submodule(name)(x)
            maps[name] = x
        return maps
