"""The segmentation decoder D of Eq. (1): queries look at the frame through deformable attention, layer by layer.

Every layer starts from a reference box, embeds it as the queries' position (Eq. 2's MLP(PE(.))) and refines it.
MaskDINO's decoder as detrex assembles it: self-attention, 4-point cross-attention, feed-forward, post-norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..structures import FrameFeatures, Shapes
from .deformable import DeformableAttention
from .layers import MLP, Attention, FeedForward, inverse_sigmoid
from .positions import box_sine_embedding


@dataclass(frozen=True)
class DecoderOutput:
    """What the decoder's layers produce, first layer first.

    Attributes:
        raw: (B, N, C) each, the stream that runs between layers.
        hidden: (B, N, C) each, the same after the shared norm.
        references: (B, N, 4) each, the box a layer started from.
    """

    raw: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention to the memory, feed-forward; post-norm."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, dim_feedforward: int
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.cross_attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, dim_feedforward)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) queries at (B, N, L, 4) references to (B, N, C)."""
        x = self.self_attn(x, pos, attn_mask=attn_mask)
        x = self.norm(x + self.cross_attn(x + pos, references, memory, shapes, padding))
        return self.ffn(x)


class Decoder(nn.Module):
    """Decoder layers with iterative boxes.

    Args:
        dim: width C.
        num_heads: attention heads.
        num_layers: layers.
        dim_feedforward: hidden width.
        num_levels: levels L of the memory.
        num_points: sampling points of a head in a level.
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 9,
        dim_feedforward: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, num_levels, num_points, dim_feedforward) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                nn.init.xavier_uniform_(parameter)
        self.bbox_embed = MLP(dim, dim, 4, 3)
        for parameter in self.bbox_embed.layers[-1].parameters():
            nn.init.zeros_(parameter)  # boxes start where they are

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """MLP(PE(boxes)) of Eq. (2): (..., 4) to (..., C), in float32."""
        with torch.autocast(boxes.device.type, enabled=False):
            return self.ref_point_head(box_sine_embedding(boxes, self.dim // 2))

    def refine(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Boxes moved as (..., C) queries say, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.bbox_embed(x.float()) + inverse_sigmoid(boxes.float())).sigmoid()

    def forward(
        self, queries: Tensor, boxes: Tensor, features: FrameFeatures, attn_mask: Tensor | None = None
    ) -> DecoderOutput:
        """Decode (B, N, C) queries that start at (B, N, 4) boxes.

        `attn_mask` (N, N), True where a query may not look at another, is what denoising asks of a decoder.

        The box that a layer predicts comes from its normed output (`refine(hidden[i], references[i])`), the reference
        that the next layer starts from comes from the raw one, as in MaskDINO.  A layer but the first looks from a
        detached reference, but predicts relative to the attached one: its box loss trains the layer before too (DINO's
        look-forward-twice).
        """
        ratios = torch.cat((features.valid_ratios, features.valid_ratios), dim=-1)[:, None]
        raw, references, start = [], [boxes], boxes
        for layer in self.layers:
            queries = layer(
                queries,
                self.embed_boxes(start),
                start[:, :, None] * ratios,
                features.memory,
                features.shapes,
                features.padding,
                attn_mask,
            )
            raw.append(queries)
            references.append(self.refine(queries, start))
            start = references[-1].detach()
        return DecoderOutput(tuple(raw), tuple(self.norm(x) for x in raw), tuple(references[:-1]))
