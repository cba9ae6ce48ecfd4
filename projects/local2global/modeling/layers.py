"""Layers and functions shared by several parts of the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_range
from ..structures import padded_pixels
from .ops.blocks import in_blocks


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x in [0, 1]; x and 1 - x are clamped to at least `eps` (Deformable DETR's form)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def relu(x: Tensor, other: Tensor | None = None) -> Tensor:
    """ReLU of x, or of x + other.

    Without gradients x is overwritten, which saves 7 % of a frame on a CPU; a forward hook must copy the previous
    layer's output to keep it.  With gradients x is preserved, because backward hooks forbid in-place changes.
    """
    if torch.is_grad_enabled():
        return F.relu(x) if other is None else (x + other).relu_()
    return x.relu_() if other is None else x.add_(other).relu_()


def sine_waves(x: Tensor, dim: int) -> Tensor:
    """Interleaved sine and cosine at `dim` / 2 wavelengths from 2 pi to 20000 pi.

    Args:
        x: (...) angles in radians.
        dim: features per angle, even.

    Returns:
        (..., dim) float32.
    """
    half = torch.arange(dim // 2, device=x.device, dtype=torch.float32)
    angle = x.float()[..., None] / 10000 ** (2 * half / dim)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def mask_logits(mask_embed: Tensor, mask_features: Tensor, extent: Tensor) -> Tensor:
    """Masks: dot products of mask embeddings with mask features.

    Args:
        mask_embed: (B, N, C).
        mask_features: (B, C, h, w).
        extent: (B, 2) width and height of the unpadded frame, in mask pixels.

    Returns:
        (B, N, h, w) float32 logits; 0 in padding, so that padding belongs to no mask.
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        masks = torch.einsum("bnc,bchw->bnhw", mask_embed.float(), mask_features.float())
    return masks.masked_fill(padded_pixels(extent, *masks.shape[-2:])[:, None], 0.0)


class MLP(nn.Module):
    """`num_layers` linear layers with a ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        out: Tensor = last(x)
        return out


class ConvNorm(nn.Module):
    """A convolution without bias, then a norm; its padding keeps the size of the map at stride 1.

    The kernel size is odd; `norm` builds the norm of a number of channels.  In a `state_dict` the convolution's weight
    is named `weight`, not `conv.weight`, as in detectron2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        check_range("channels", min(in_channels, out_channels), 1)
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = norm(out_channels)
        self._register_state_dict_hook(_rename_saved)
        self._register_load_state_dict_pre_hook(_rename_loaded)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        out: Tensor = self.norm(self.conv(x))
        return out


def _rename_saved(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}conv.")]:
        state[prefix + name.removeprefix(f"{prefix}conv.")] = state.pop(name)


def _rename_loaded(state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}conv.weight"] = state.pop(f"{prefix}weight")


class FeedForward(nn.Module):
    """x + W2 relu(W1 x), post-normed: the last sub-layer of every transformer layer."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        check_range("dim_feedforward", hidden_dim, 1)
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return in_blocks(self._update, x)

    def _update(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.linear2(relu(self.linear1(x))))
        return out


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
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Self-attention, or cross-attention to `memory`.

        Args:
            x: (B, N, C) queries.
            x_pos: (B, N, C) positions of the queries.
            memory: (B, M, C) keys and values; None means self-attention.
            memory_pos: (B, M, C) positions of the memory.
            attn_mask: (N, M) bool, True where a query must not attend.

        Returns:
            (B, N, C).
        """
        memory, memory_pos = (x, x_pos) if memory is None else (memory, memory_pos)
        key = memory if memory_pos is None else memory + memory_pos
        attended, _ = self.attention(x + x_pos, key, memory, need_weights=False, attn_mask=attn_mask)
        out: Tensor = self.norm(x + attended)
        return out
