"""The segmentation decoder D of Eq. (1), MaskDINO's as detrex assembles it.

Every layer embeds its reference boxes as query positions (MLP(PE(.)) of Eq. (2)) and refines the boxes.
A layer is self-attention, 4-point deformable cross-attention to the memory, and feed-forward; post-norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import check_range
from ..structures import FrameFeatures, Shapes
from .deformable import DeformableAttention
from .layers import MLP, Attention, FeedForward, inverse_sigmoid
from .positions import box_sine_embedding


@dataclass(frozen=True)
class DecoderOutput:
    """Outputs of the decoder's layers, first layer first.

    Attributes:
        raw: (B, N, C) each, input of the next layer.
        hidden: (B, N, C) each, `raw` after the shared norm.
        references: (B, N, 4) each, reference boxes of the layer.
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
        """Decode one layer.

        Args:
            x: (B, N, C) queries.
            pos: (B, N, C) their positions.
            references: (B, N, L, 4) boxes in [0, 1] of each level's padded map.
            memory: (B, S, C) tokens of all levels.
            shapes: (height, width) of every level.
            padding: (B, S) bool, True at padded tokens.
            attn_mask: (N, N) bool, True where a query must not attend to another.

        Returns:
            (B, N, C).
        """
        x = self.self_attn(x, pos, attn_mask=attn_mask)
        x = self.norm(x + self.cross_attn(x + pos, references, memory, shapes, padding))
        out: Tensor = self.ffn(x)
        return out


class Decoder(nn.Module):
    """Decoder layers that refine boxes; a head samples `num_points` points in each of the `num_levels` levels."""

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
        check_range("num_layers", num_layers, 1)
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
            nn.init.zeros_(parameter)  # initially, refined boxes equal their references

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """MLP(PE(boxes)) of Eq. (2): (..., 4) boxes to (..., C) position embeddings, in float32."""
        with torch.autocast(boxes.device.type, enabled=False):
            out: Tensor = self.ref_point_head(box_sine_embedding(boxes, self.dim // 2))
        return out

    def refine(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Refine (..., 4) boxes by (..., C) queries, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            offsets: Tensor = self.bbox_embed(x.float())
            return (offsets + inverse_sigmoid(boxes.float())).sigmoid()

    def forward(
        self, queries: Tensor, boxes: Tensor, features: FrameFeatures, attn_mask: Tensor | None = None
    ) -> DecoderOutput:
        """Decode one frame.

        A layer predicts its box from its normed output: `refine(hidden[i], references[i])`.  The next layer's reference
        comes from the raw output, as in MaskDINO.  Attention uses the detached reference, box prediction the attached
        reference.  The box loss of a layer thus also trains the previous layer (DINO's look-forward-twice).

        Args:
            queries: (B, N, C).
            boxes: (B, N, 4) references of the first layer.
            features: the frame.
            attn_mask: (N, N) bool, True where a query must not attend to another; for denoising.
        """
        ratios = torch.cat((features.valid_ratios, features.valid_ratios), dim=-1)[:, None]  # (B, 1, L, 4)
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
