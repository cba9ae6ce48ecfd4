"""The segmenter, MaskDINO's: E finds features and local queries in a frame, D turns queries into masks.

It knows one frame at a time; what crosses frames is the tracker's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..boxes import mask_to_box
from ..structures import (
    FrameFeatures,
    FramePredictions,
    LayerPredictions,
    Positions,
    Proposals,
    Queries,
    Shapes,
    constant,
)
from .decoder import Decoder
from .encoder import PixelEncoder
from .layers import MLP, mask_logits


class Segmenter(nn.Module):
    """Backbone, pixel encoder, two-stage proposals, decoder, and the heads they share.

    Args:
        backbone: images to named maps.
        encoder: maps to `FrameFeatures`.
        decoder: queries to queries.
        num_classes: K.
        num_queries: N, local and global.
        dim: width C.
        mask_dim: width of the mask features; `dim` if None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: PixelEncoder,
        decoder: Decoder,
        num_classes: int,
        num_queries: int = 100,
        dim: int = 256,
        mask_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.num_queries = num_queries
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes)
        nn.init.constant_(self.class_embed.bias, -math.log(99))  # every class starts at a score of .01
        self.mask_embed = MLP(dim, dim, mask_dim or dim, 3)
        # Denoising's label embedding: kept so that released checkpoints load, trained by nothing here.
        self.label_enc = nn.Embedding(num_classes, dim).requires_grad_(False)

    def encode(self, images: Tensor, valid: Tensor | None) -> FrameFeatures:
        """E of Eq. (1).

        Args:
            images: (B, 3, H, W) normalised, padded.
            valid: (B, 2) the unpadded part of each width and height, in (0, 1]; None where nothing is padded.
        """
        return self.encoder(self.backbone(images), valid)

    def propose(self, features: FrameFeatures) -> Proposals:
        """Local queries: the N encoder tokens with the most confident class, most confident first."""
        memory, anchors = proposal_anchors(features)
        tokens = self.enc_output_norm(self.enc_output(memory))
        if tokens.shape[1] < self.num_queries:
            raise ValueError(
                f"frames of {features.shapes} tokens cannot give {self.num_queries} local queries: use larger frames"
            )
        scores = self._classify(tokens).amax(dim=-1)
        if features.padding is not None:
            scores = scores.masked_fill(features.padding, -torch.inf)
        best = scores.topk(self.num_queries, dim=1).indices[..., None]
        embed = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        with torch.autocast(embed.device.type, enabled=False):
            boxes = (
                self.decoder.bbox_embed(embed.float()) + anchors.gather(1, best.expand(-1, -1, 4))
            ).sigmoid()
        predictions = self._heads(embed, boxes)

        def locate() -> Tensor:
            return self._locate(predictions.mask_embed.detach(), boxes.detach(), features)

        return Proposals(embed.detach(), predictions, locate)

    def decode(
        self, embed: Tensor, positions: Positions, features: FrameFeatures, local: LayerPredictions
    ) -> FramePredictions:
        """D of Eq. (1), and the heads.

        Args:
            embed: (B, N, C) aligned queries.
            positions: where they look.
            features: the frame.
            local: the local queries' predictions, passed on to the losses.

        Returns:
            The predictions; with those of layer 0 and of every layer while training.
        """
        first = self._heads(embed, None)
        boxes = positions.boxes
        if not positions.current:
            boxes = self._locate(first.mask_embed.detach(), boxes, features)
        output = self.decoder(embed, boxes, features)
        kept = range(len(output.raw)) if self.training else (len(output.raw) - 1,)
        refined = [self.decoder.refine(output.hidden[i], output.references[i]) for i in kept]
        layers = [self._heads(output.hidden[i], box) for i, box in zip(kept, refined, strict=True)]
        last = layers[-1]
        with torch.no_grad():
            masks = mask_logits(last.mask_embed, features.mask_features, features.extent)
            seen = mask_to_box(masks, boxes, features.extent[:, None])
        return FramePredictions(
            logits=last.logits,
            boxes=refined[-1],
            masks=masks,
            extent=features.extent,
            queries=Queries(output.raw[-1], seen),
            layers=(first, *layers) if self.training else (),
            local=local if self.training else None,
        )

    def _heads(self, x: Tensor, boxes: Tensor | None) -> LayerPredictions:
        normed = self.decoder.norm(x)
        return LayerPredictions(self._classify(normed), boxes, self.mask_embed(normed))

    def _classify(self, x: Tensor) -> Tensor:
        """Class logits, in float32 because they rank."""
        with torch.autocast(x.device.type, enabled=False):
            return self.class_embed(x.float())

    @torch.no_grad()
    def _locate(self, mask_embed: Tensor, fallback: Tensor, features: FrameFeatures) -> Tensor:
        masks = mask_logits(mask_embed, features.mask_features, features.extent)
        return mask_to_box(masks, fallback, features.extent[:, None])


def proposal_anchors(features: FrameFeatures) -> tuple[Tensor, Tensor]:
    """Two-stage proposals (Deformable DETR, appendix A.4): a box round every token, 0.05 * 2^i wide on level i.

    Levels count from the coarsest, as in released MaskDINO weights.

    Returns:
        (B, S, C) memory, zero at padding and where the box's centre is within .01 of the frame's border, and (B, S, 4)
        logits of the boxes, infinite there.
    """
    valid = torch.cat(
        [_anchors(i, features.shapes, features.valid_ratios) for i in range(len(features.shapes))], 1
    )
    inside = ((valid > 0.01) & (valid < 0.99)).all(dim=-1)
    if features.padding is not None:
        inside = inside & ~features.padding
    anchors = torch.log(valid / (1 - valid)).masked_fill(~inside[..., None], torch.inf)
    return features.memory.masked_fill(~inside[..., None], 0.0), anchors


def _anchors(level: int, shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """(B, height * width, 4) boxes of one level, in the frame's own coordinates."""
    height, width = shapes[level]
    y = torch.arange(height, device=valid_ratios.device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=valid_ratios.device, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
    own = valid_ratios[:, level] * constant((width, height), valid_ratios)
    centres = grid / own[:, None]
    return torch.cat((centres, torch.full_like(centres, 0.05 * 2**level)), dim=-1)
