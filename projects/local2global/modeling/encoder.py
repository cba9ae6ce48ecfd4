"""The pixel encoder: backbone maps to multi-scale tokens and mask features (MaskDINO's, as detrex assembles it).

Deformable self-attention mixes the levels; one FPN step carries the finest of them to stride 4 for the masks.

Padding is masked behind this file, not before it: a frame alone and the same frame padded in a batch still differ,
because GroupNorm counts padding, and because the backbone's convolutions, the FPN's and its upsampling read across the
frame's edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..structures import FrameFeatures, constant, padded_pixels
from .layers import ConvNorm, DeformableAttention, FeedForward, convolution, sine_waves
from .ops.bags import Shapes


def grid_sine_embedding(counts: Tensor, height: int, width: int, dim: int) -> Tensor:
    """DETR's sine embedding of a map, normalised by its unpadded part.

    Args:
        counts: (B, 2) columns and rows that are not padding, float32.
        height: rows of the map.
        width: columns of the map.
        dim: width C of the embedding; the first half encodes y, the second x.

    Returns:
        (B, height * width, C); in padding a coordinate whose whole line is padding counts as 0.
    """
    nowhere = sine_waves(counts.new_zeros(()), dim // 2)

    def encode(length: int, count: Tensor) -> Tensor:
        steps = torch.arange(1, length + 1, device=counts.device, dtype=torch.float32)
        phase = torch.minimum(steps, count[:, None]) / (count[:, None] + 1e-6) * (2 * math.pi)
        return sine_waves(phase, dim // 2)

    rows, columns = (
        (torch.arange(length, device=counts.device) < counts[:, i : i + 1])[..., None]
        for i, length in ((1, height), (0, width))
    )
    y = torch.where(columns[:, None], encode(height, counts[:, 1])[:, :, None], nowhere)
    x = torch.where(rows[:, :, None], encode(width, counts[:, 0])[:, None], nowhere)
    return torch.cat((y, x), dim=-1).flatten(1, 2)


@dataclass(frozen=True)
class Geometry:
    """Where the tokens of B frames lie.

    Attributes:
        shapes: (L, 2) as ints: (height, width) of every level.
        pos: (B, S, C) position embedding, without that of the level.
        references: (B, S, L, 2) where each token looks first, in [0, 1] of each level's padded map.
        padding: (B, S) bool, True at a token that lies wholly in padding; None where nothing is padded.
        valid_ratios: (B, L, 2) the unpadded part of each level's width and height.
        extent: (B, 2) width and height of the unpadded frame in mask pixels.
    """

    shapes: tuple[tuple[int, int], ...]
    pos: Tensor
    references: Tensor
    padding: Tensor | None
    valid_ratios: Tensor
    extent: Tensor

    @classmethod
    def of(
        cls, shapes: Shapes, valid: Tensor, mask_shape: tuple[int, int], dim: int, padded: bool = True
    ) -> Geometry:
        """Frames of which a (B, 2) part of width and height is not padding; all of it if they are not `padded`."""
        counts = [unpadded(valid, *shape).ceil() for shape in shapes]
        levels = list(zip(counts, shapes, strict=True))
        pos = [grid_sine_embedding(count, *shape, dim) for count, shape in levels]
        padding = [padded_pixels(count, *shape).flatten(1) for count, shape in levels]
        centres = torch.cat([pixel_centres(*shape, valid.device) for shape in shapes])
        return cls(
            tuple(shapes),
            torch.cat(pos, dim=1),
            centres[None, :, None].expand(len(valid), -1, len(shapes), -1),
            torch.cat(padding, dim=1) if padded else None,
            valid[:, None].expand(-1, len(shapes), -1),
            unpadded(valid, *mask_shape),
        )


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, post-normed."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, dim_feedforward: int
    ) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_feedforward)

    def forward(
        self, x: Tensor, pos: Tensor, references: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.ffn(self.norm(x + self.self_attn(x + pos, references, x, shapes, padding)))


class PixelEncoder(nn.Module):
    """Backbone maps to `FrameFeatures`.

    Args:
        channels: channels of the backbone's maps, finest first.
        dim: width C of tokens and of mask features.
        num_heads: attention heads.
        num_layers: encoder layers.
        dim_feedforward: their hidden width.
        num_levels: levels L; those beyond `features` are made by stride-2 convolutions of the coarsest map, and lie
            coarsest first, as in detrex, beside it.
        num_points: sampling points of a head in a level.
        features: the maps to flatten, in this order, finest or coarsest first.
        groups: groups of the GroupNorms.
        checkpointing: while training, keep only what enters each layer and compute the rest a second time on the way
            back: a third more time of the encoder for the better part of a clip's memory.
        mask_dim: width of the mask features; `dim` if None.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
        features: Sequence[str] = ("res3", "res4", "res5"),
        groups: int = 32,
        checkpointing: bool = False,
        mask_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        missing = [name for name in features if name not in channels]
        if missing:
            raise ValueError(f"features {missing} are not among the backbone's maps {sorted(channels)}")
        self.features = tuple(features)
        self.lateral = next(iter(channels))
        # Levels count from the finest map of the backbone; those made here are coarser than all.
        fineness = [list(channels).index(name) for name in features]
        made = list(range(len(channels), len(channels) + num_levels - len(features)))
        self.made_first = fineness[0] > fineness[-1]
        made.reverse()
        fineness = [*made, *fineness] if self.made_first else [*fineness, *made]
        self.coarsest_first = sorted(range(num_levels), key=lambda level: -fineness[level])
        coarsest = max(channels[name] for name in features)
        projections: list[nn.Module] = []
        for level in range(num_levels):
            if level < len(features):
                conv = nn.Conv2d(channels[features[level]], dim, 1)
            else:
                conv = nn.Conv2d(coarsest if level == len(features) else dim, dim, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(conv.weight)
            _zero_bias(conv)
            projections.append(nn.Sequential(conv, nn.GroupNorm(groups, dim)))
        self.input_proj = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, num_levels, num_points, dim_feedforward) for _ in range(num_layers)
        )
        self.adapter_1 = ConvNorm(channels[self.lateral], dim, 1, groups)
        self.layer_1 = ConvNorm(dim, dim, 3, groups)
        self.mask_features = nn.Conv2d(dim, mask_dim or dim, 1)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        _zero_bias(self.mask_features)

    def forward(self, maps: Mapping[str, Tensor], valid: Tensor | None) -> FrameFeatures:
        """Encode B frames.

        Args:
            maps: the backbone's maps, (B, channels, height, width) each.
            valid: (B, 2) float32, the unpadded part of each frame's width and height, in (0, 1]; None where nothing is
                padded, and nothing is masked.

        Returns:
            The features; their levels coarsest first, the order the decoder reads them in.
        """
        sources = self.project(maps)
        shapes = tuple((source.shape[-2], source.shape[-1]) for source in sources)
        mask_shape = (maps[self.lateral].shape[-2], maps[self.lateral].shape[-1])
        padded = valid is not None
        if valid is None:
            valid = torch.ones(len(sources[0]), 2, device=sources[0].device)
        geometry = Geometry.of(shapes, valid, mask_shape, sources[0].shape[1], padded)
        return self.encode(maps[self.lateral], sources, geometry)

    def project(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """The levels before attention, (B, C, height, width) each, in the encoder's own order."""
        given = [
            _projected(proj, maps[name]) for proj, name in zip(self.input_proj, self.features, strict=False)
        ]
        coarsest = max((maps[name] for name in reversed(self.features)), key=lambda m: m.shape[1])
        # in float32 torch's own convolution, which rounds as detrex's: where a level's norm sees a few pixels, it shows
        exact = not torch.is_autocast_enabled(coarsest.device.type)
        made: list[Tensor] = []
        for proj in self.input_proj[len(self.features) :]:
            coarsest = proj(coarsest) if exact else _projected(proj, coarsest)
            made.append(coarsest)
        made.reverse()
        return [*made, *given] if self.made_first else [*given, *made]

    def encode(self, lateral: Tensor, sources: Sequence[Tensor], geometry: Geometry) -> FrameFeatures:
        """Attention among the levels, and mask features from the finest of them and the (B, channels, h, w) lateral."""
        shapes = geometry.shapes
        tokens = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)
        split = [height * width for height, width in shapes]
        level = [embed.expand(count, -1) for embed, count in zip(self.level_embed, split, strict=True)]
        pos = geometry.pos + torch.cat(level)
        given = (pos, geometry.references, shapes, geometry.padding)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(layer, tokens, *given, use_reentrant=False)
            else:
                tokens = layer(tokens, *given)
        order = self.coarsest_first
        levels, padding = tokens.split(split, dim=1), geometry.padding
        if padding is not None:
            padded = padding.split(split, dim=1)
            padding = torch.cat([padded[i] for i in order], dim=1)
        finest = order[-1]
        top = levels[finest].transpose(1, 2).unflatten(-1, shapes[finest])
        return FrameFeatures(
            memory=torch.cat([levels[i] for i in order], dim=1),
            shapes=tuple(shapes[i] for i in order),
            padding=padding,
            mask_features=self.refine(lateral, top),
            extent=geometry.extent,
            valid_ratios=geometry.valid_ratios[:, order],
        )

    def refine(self, lateral: Tensor, top: Tensor) -> Tensor:
        """The FPN's step: mask features from the (B, channels, h, w) lateral and the finest level's map."""
        # a copy whose strides say channels last: torch doubts those of a slice of one frame, and is ten times slower
        top = top.clone(memory_format=torch.channels_last)
        top = F.interpolate(top, lateral.shape[-2:], mode="bilinear", align_corners=False)
        return convolution(self.mask_features, self.layer_1(self.adapter_1(lateral) + top).relu_())


def unpadded(valid: Tensor, height: int, width: int) -> Tensor:
    """Columns and rows of a map that the frame covers, (B, 2); rounded, lest 28.000002 of them reach a 29th.

    Args:
        valid: (B, 2) float32, the unpadded part of each frame's width and height, in (0, 1].
        height: rows of the map.
        width: columns of the map.
    """
    return (valid * constant((width, height), valid) * 4096).round() / 4096


def _projected(projection: nn.Module, x: Tensor) -> Tensor:
    conv, norm = cast(tuple[nn.Conv2d, nn.GroupNorm], projection)
    return norm(convolution(conv, x))


def _zero_bias(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) pixel centres (x, y) in [0, 1] of the map."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)
