"""The pixel encoder: backbone maps to multi-scale tokens and mask features (MaskDINO's, as detrex assembles it).

Deformable self-attention mixes the levels.  One FPN step upsamples the finest level to stride 4 for the masks.

Masking begins in deformable self-attention; convolutions and GroupNorm include padding.  The features of a frame
therefore depend on its padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..structures import FrameFeatures, Shapes, constant, padded_pixels
from .deformable import DeformableAttention
from .layers import ConvNorm, FeedForward, relu, sine_waves


def grid_sine_embedding(counts: Tensor, height: int, width: int, dim: int) -> Tensor:
    """DETR's sine embedding of a map, normalised by its unpadded size.

    Args:
        counts: (B, 2) unpadded columns and rows, float32.
        height: rows of the map.
        width: columns of the map.
        dim: width C of the embedding; the first half encodes y, the second half x.

    Returns:
        (B, height * width, C).  In padding, a coordinate whose whole row or column is padding is encoded as 0.
    """
    zero = sine_waves(counts.new_zeros(()), dim // 2)

    def encode(length: int, count: Tensor) -> Tensor:
        steps = torch.arange(1, length + 1, device=counts.device, dtype=torch.float32)
        phase = torch.minimum(steps, count[:, None]) / (count[:, None] + 1e-6) * (2 * math.pi)
        return sine_waves(phase, dim // 2)

    rows, columns = (
        (torch.arange(length, device=counts.device) < counts[:, i : i + 1])[..., None]
        for i, length in ((1, height), (0, width))
    )
    y = torch.where(columns[:, None], encode(height, counts[:, 1])[:, :, None], zero)
    x = torch.where(rows[:, :, None], encode(width, counts[:, 0])[:, None], zero)
    return torch.cat((y, x), dim=-1).flatten(1, 2)


@dataclass(frozen=True)
class Geometry:
    """Positions of the tokens of B frames.

    Attributes:
        shapes: (L, 2) as ints: (height, width) of every level.
        pos: (B, S, C) position embedding, without the embedding of the level.
        references: (B, S, L, 2) reference point of each token, in [0, 1] of each level's padded map.
        padding: (B, S) bool, True at a token that lies wholly in padding; None if no frame is padded.
        valid_ratios: (B, L, 2) unpadded fraction of each level's width and height.
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
        """Geometry of frames with unpadded fractions `valid`, (B, 2) in (0, 1].

        Args:
            shapes: (height, width) of every level.
            valid: (B, 2) unpadded fractions of width and height.
            mask_shape: (height, width) of the mask features.
            dim: width C.
            padded: whether any frame is padded; if not, `padding` is None.
        """
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
        dim: width C of the tokens.
        num_heads: attention heads.
        num_layers: encoder layers.
        dim_feedforward: hidden width of the feed-forward networks.
        num_levels: levels L.  Levels beyond `features` are stride-2 convolutions of the coarsest map.  Extra
            levels are adjacent to the coarsest level, coarsest first, as in detrex.
        num_points: sampling points of a head in a level.
        features: names of the maps to flatten, ordered finest first or coarsest first.
        groups: GroupNorm groups.
        checkpointing: in training, save only the inputs of each layer and recompute the rest in backward.  Saves
            most encoder activation memory; encoder time rises by a third.
        mask_dim: width of the mask features; `dim` if None.

    Raises:
        ValueError: a name of `features` is not among `channels`.
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
        # Coarseness counts from the backbone's finest map; extra levels are coarser than every map.
        coarseness = [list(channels).index(name) for name in features]
        extra = list(reversed(range(len(channels), len(channels) + num_levels - len(features))))
        self.extra_first = coarseness[0] > coarseness[-1]
        coarseness = [*extra, *coarseness] if self.extra_first else [*coarseness, *extra]
        self.coarsest_first = sorted(range(num_levels), key=lambda level: -coarseness[level])
        self.coarsest = max(features, key=list(channels).index)
        projections: list[nn.Module] = []
        for level in range(num_levels):
            if level < len(features):
                conv = nn.Conv2d(channels[features[level]], dim, 1)
            else:
                in_channels = channels[self.coarsest] if level == len(features) else dim
                conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(_bias(conv))
            projections.append(nn.Sequential(conv, nn.GroupNorm(groups, dim)))
        self.input_proj = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, num_levels, num_points, dim_feedforward) for _ in range(num_layers)
        )
        norm = partial(nn.GroupNorm, groups)
        self.adapter_1 = ConvNorm(channels[self.lateral], dim, 1, norm=norm)
        self.layer_1 = ConvNorm(dim, dim, 3, norm=norm)
        self.mask_features = nn.Conv2d(dim, mask_dim or dim, 1)
        for conv in (self.adapter_1.conv, self.layer_1.conv, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(_bias(self.mask_features))

    def forward(self, maps: Mapping[str, Tensor], valid: Tensor | None) -> FrameFeatures:
        """Encode B frames.

        Args:
            maps: the backbone's maps, (B, channels, height, width) each.
            valid: (B, 2) float32, unpadded fraction of each frame's width and height, in (0, 1]; None if no frame is
                padded, which skips all masking.

        Returns:
            The features, with their levels coarsest first, the decoder's order.
        """
        sources = self.project(maps)
        lateral = maps[self.lateral]
        shapes = [(source.shape[-2], source.shape[-1]) for source in sources]
        padded = valid is not None
        if valid is None:
            valid = torch.ones(len(lateral), 2, device=lateral.device)
        mask_shape = (lateral.shape[-2], lateral.shape[-1])
        geometry = Geometry.of(shapes, valid, mask_shape, sources[0].shape[1], padded)
        return self.encode(lateral, sources, geometry)

    def project(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """The levels before attention, (B, C, height, width) each, in the encoder's order."""
        count = len(self.features)
        levels = [proj(maps[name]) for proj, name in zip(self.input_proj[:count], self.features, strict=True)]
        coarsest, extra = maps[self.coarsest], list[Tensor]()
        for proj in self.input_proj[count:]:
            coarsest = proj(coarsest)
            extra.insert(0, coarsest)
        return [*extra, *levels] if self.extra_first else [*levels, *extra]

    def encode(self, lateral: Tensor, sources: Sequence[Tensor], geometry: Geometry) -> FrameFeatures:
        """Attention among the levels, then the mask features.

        Args:
            lateral: (B, channels, h, w) the backbone's finest map.
            sources: the projected levels, (B, C, height, width) each.
            geometry: positions of their tokens.
        """
        shapes = geometry.shapes
        sizes = [height * width for height, width in shapes]
        tokens = torch.cat([source.flatten(2).transpose(1, 2) for source in sources], dim=1)  # (B, S, C)
        level_pos = [embed.expand(size, -1) for embed, size in zip(self.level_embed, sizes, strict=True)]
        pos = geometry.pos + torch.cat(level_pos)
        for layer in self.layers:
            arguments = (tokens, pos, geometry.references, shapes, geometry.padding)
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                tokens = layer(*arguments)
        order = self.coarsest_first
        levels, padding = tokens.split(sizes, dim=1), geometry.padding
        if padding is not None:
            level_padding = padding.split(sizes, dim=1)
            padding = torch.cat([level_padding[i] for i in order], dim=1)
        finest = order[-1]
        return FrameFeatures(
            memory=torch.cat([levels[i] for i in order], dim=1),
            shapes=tuple(shapes[i] for i in order),
            padding=padding,
            mask_features=self.fuse(lateral, levels[finest].transpose(1, 2).unflatten(-1, shapes[finest])),
            extent=geometry.extent,
            valid_ratios=geometry.valid_ratios[:, order],
        )

    def fuse(self, lateral: Tensor, top: Tensor) -> Tensor:
        """One FPN step to the mask features.

        Args:
            lateral: (B, channels, h, w) the backbone's finest map.
            top: (B, C, h / 2, w / 2) the finest encoded level.

        Returns:
            (B, C, h, w).
        """
        # Explicit channels_last strides: torch does not recognise them in a slice of one frame, which is 10x slower.
        top = top.clone(memory_format=torch.channels_last)
        top = F.interpolate(top, lateral.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.mask_features(relu(self.layer_1(self.adapter_1(lateral) + top)))
        return out


def unpadded(valid: Tensor, height: int, width: int) -> Tensor:
    """Columns and rows of a map that the frame covers, rounded so that 28.000002 columns do not become 29.

    Args:
        valid: (B, 2) float32, unpadded fraction of each frame's width and height, in (0, 1].
        height: rows of the map.
        width: columns of the map.

    Returns:
        (B, 2) float32.
    """
    return (valid * constant((width, height), valid) * 4096).round() / 4096


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) pixel centres (x, y) in [0, 1] of the map."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)
