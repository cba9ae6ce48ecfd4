"""Swin (Liu et al., ICCV 2021) as a backbone, built by transformers, under the official code's names on disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.names import HF_SWIN, rename

#: The official code keeps queries, keys and values in one matrix, transformers in three.
_PARTS = ("q", "k", "v")


class Swin(nn.Module):
    """Images to four maps, each normed by itself; by default Swin-L, pre-trained at 384 with windows of 12.

    Args:
        embed_dim: channels of res2; each next map has twice as many.
        depths: blocks of every stage.
        num_heads: attention heads of every stage.
        window_size: tokens along a window's side.
        drop_path_rate: how often the last block is left out in training; earlier ones less.
    """

    def __init__(
        self,
        embed_dim: int = 192,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_size: int = 12,
        drop_path_rate: float = 0.3,
    ) -> None:
        super().__init__()
        from transformers import SwinBackbone, SwinConfig  # a second to import: only when a Swin is built

        settings: dict[str, Any] = dict(
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_features=[f"stage{i + 1}" for i in range(len(depths))],
        )
        self.network = SwinBackbone(SwinConfig(**settings))
        whole: nn.Module = self.network.swin
        whole.layernorm = nn.Identity()  # of the whole network's output, which no map is
        self.channels = {f"res{i + 2}": embed_dim * 2**i for i in range(len(depths))}
        self._ours = {name: rename(name, HF_SWIN) for name in self.network.state_dict()}
        self._register_state_dict_hook(_rename_saved)
        self._register_load_state_dict_pre_hook(self._rename_loaded)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to res2 .. res5 at strides 4 .. 32."""
        return dict(zip(self.channels, self.network(images).feature_maps, strict=True))

    def _rename_loaded(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix) and ".attn.qkv." in name]:
            for part, value in zip(_PARTS, state.pop(name).chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attn.{part}.")] = value
        for theirs, ours in self._ours.items():
            if prefix + ours in state:
                state[f"{prefix}network.{theirs}"] = state.pop(prefix + ours)


def _rename_saved(module: Swin, state: dict[str, Any], prefix: str, _: Any) -> None:
    for theirs, ours in module._ours.items():
        if f"{prefix}network.{theirs}" in state:
            state[prefix + ours] = state.pop(f"{prefix}network.{theirs}")
    for name in [name for name in state if name.startswith(prefix) and re.search(r"\.attn\.q\.", name)]:
        parts = [state.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in _PARTS]
        state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
