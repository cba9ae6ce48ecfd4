"""Swin (Liu et al., ICCV 2021) as a backbone: transformers' network; `state_dict` keys follow the official code.

Needs transformers: `pip install "local2global[swin]"`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights.names import HF_SWIN, rename

#: The official code stores queries, keys and values as one matrix `qkv`; transformers stores three.
_QKV = ("q", "k", "v")


class Swin(nn.Module):
    """Images to four maps, each with a separate norm; by default Swin-L, pre-trained at 384 with windows of 12.

    Args:
        embed_dim: channels of res2; each next map has twice as many.
        depths: blocks of every stage.
        num_heads: attention heads of every stage.
        window_size: tokens along the side of a window.
        drop_path_rate: probability of skipping the last block in training; it decreases linearly to 0 at the first.

    Raises:
        UserError: transformers is not installed.
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
        try:
            from transformers import SwinBackbone, SwinConfig
        except ImportError as error:
            raise UserError(
                'the Swin backbone needs transformers: pip install "local2global[swin]"'
            ) from error

        settings: dict[str, Any] = dict(
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_features=[f"stage{i + 1}" for i in range(len(depths))],
        )
        self.network = SwinBackbone(SwinConfig(**settings))
        swin: nn.Module = self.network.swin
        swin.layernorm = nn.Identity()  # norm of the classifier's input, which is not a map
        self.channels = {f"res{i + 2}": embed_dim * 2**i for i in range(len(depths))}
        self._saved_names = {name: rename(name, HF_SWIN) for name in self.network.state_dict()}
        self._register_state_dict_hook(_rename_saved)
        self._register_load_state_dict_pre_hook(self._rename_loaded)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised images to maps res2 .. res5 of strides 4 .. 32."""
        return dict(zip(self.channels, self.network(images).feature_maps, strict=True))

    def _rename_loaded(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix) and ".attn.qkv." in name]:
            for part, value in zip(_QKV, state.pop(name).chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attn.{part}.")] = value
        for name, saved in self._saved_names.items():
            if prefix + saved in state:
                state[f"{prefix}network.{name}"] = state.pop(prefix + saved)


def _rename_saved(module: Swin, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name, saved in module._saved_names.items():
        if f"{prefix}network.{name}" in state:
            state[prefix + saved] = state.pop(f"{prefix}network.{name}")
    for name in [name for name in state if name.startswith(prefix) and re.search(r"\.attn\.q\.", name)]:
        parts = [state.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in _QKV]
        state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
