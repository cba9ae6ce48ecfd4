"""The segmenter, MaskDINO's: E encodes a frame and proposes local queries, D decodes queries to masks.

The segmenter works on one frame at a time; the tracker passes queries between frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..boxes import mask_to_box
from ..errors import UserError, check_range
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
    """Backbone, pixel encoder, two-stage proposals, decoder, and their shared heads.

    Args:
        backbone: images to named maps.
        encoder: maps to `FrameFeatures`.
        decoder: queries to queries.
        num_classes: K.
        num_queries: N, the number of local queries and of global queries.
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
        check_range("num_queries", num_queries, 1)
        check_range("num_classes", num_classes, 1)
        if getattr(decoder, "dim", dim) != dim:
            raise UserError(f"dim {dim}: the decoder has {decoder.dim}")
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder
        self.num_queries = num_queries
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes)
        nn.init.constant_(self.class_embed.bias, -math.log(99))  # initial scores are .01
        self.mask_embed = MLP(dim, dim, mask_dim or dim, 3)
        # Denoising's label embedding: loaded from released checkpoints, not trained.
        self.label_enc = nn.Embedding(num_classes, dim).requires_grad_(False)

    def encode(self, images: Tensor, valid: Tensor | None) -> FrameFeatures:
        """E of Eq. (1).

        Args:
            images: (B, 3, H, W), normalised and padded.
            valid: (B, 2) unpadded fraction of each width and height, in (0, 1]; None if no frame is padded.
        """
        features: FrameFeatures = self.encoder(self.backbone(images), valid)
        return features

    def propose(self, features: FrameFeatures) -> Proposals:
        """Local queries: the N encoder tokens with the most confident class, most confident first.

        Raises:
            UserError: the frame has fewer than N tokens.
        """
        memory, anchors = proposal_anchors(features)
        tokens = self.enc_output_norm(self.enc_output(memory))  # (B, S, C)
        if tokens.shape[1] < self.num_queries:
            raise UserError(
                f"the frame has {tokens.shape[1]} tokens (levels {features.shapes}), fewer than num_queries "
                f"{self.num_queries}: use larger frames"
            )
        scores = self._classify(tokens).amax(dim=-1)
        if features.padding is not None:
            scores = scores.masked_fill(features.padding, -torch.inf)
        top = scores.topk(self.num_queries, dim=1).indices[..., None]
        embed = tokens.gather(1, top.expand(-1, -1, tokens.shape[-1]))  # (B, N, C)
        with torch.autocast(embed.device.type, enabled=False):
            offsets = self.decoder.bbox_embed(embed.float())
            boxes = (offsets + anchors.gather(1, top.expand(-1, -1, 4))).sigmoid()
        predictions = self._heads(embed, boxes)
        located = self._locate(predictions.mask_embed, boxes, features)
        return Proposals(embed.detach(), located, predictions)

    def decode(
        self, queries: Queries, positions: Positions, features: FrameFeatures, local: LayerPredictions
    ) -> FramePredictions:
        """D of Eq. (1), and the heads.

        In evaluation, of the decoder layers only the last one is passed to the heads.

        Args:
            queries: the aligned slots.
            positions: initial reference boxes.  None as boxes: Mask2Box of the queries' masks on this frame.
            features: the frame.
            local: predictions of the local queries, passed on to the losses.
        """
        first = self._heads(queries.embed, None)
        boxes = positions.boxes
        if boxes is None:
            boxes = self._locate(first.mask_embed, queries.boxes, features)
        output = self.decoder(queries.embed, boxes, features)
        last = len(output.raw) - 1
        layers = [
            self._heads(hidden, self.decoder.refine(hidden, references))
            for i, (hidden, references) in enumerate(zip(output.hidden, output.references, strict=True))
            if self.training or i == last
        ]
        final = layers[-1]
        assert final.boxes is not None
        with torch.no_grad():
            masks = mask_logits(final.mask_embed, features.mask_features, features.extent)
            located = mask_to_box(masks, boxes, features.extent[:, None])
        return FramePredictions(
            logits=final.logits,
            boxes=final.boxes,
            masks=masks,
            extent=features.extent,
            queries=Queries(output.raw[-1], located),
            layers=(first, *layers) if self.training else (),
            local=local if self.training else None,
            colours=features.colours,
        )

    def _heads(self, x: Tensor, boxes: Tensor | None) -> LayerPredictions:
        """Class and mask heads of (B, N, C) queries.  Decoder outputs are normalised twice, as in MaskDINO."""
        normed = self.decoder.norm(x)
        return LayerPredictions(self._classify(normed), boxes, self.mask_embed(normed))

    def _classify(self, x: Tensor) -> Tensor:
        """Class logits in float32: scores are ranked."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.class_embed(x.float())
        return logits

    @torch.no_grad()
    def _locate(self, mask_embed: Tensor, fallback: Tensor, features: FrameFeatures) -> Tensor:
        """(B, N, 4) Mask2Box of the masks of (B, N, C) mask embeddings; `fallback` for empty masks."""
        masks = mask_logits(mask_embed, features.mask_features, features.extent)
        return mask_to_box(masks, fallback, features.extent[:, None])


def proposal_anchors(features: FrameFeatures) -> tuple[Tensor, Tensor]:
    """Two-stage proposals (Deformable DETR, appendix A.4): a box of size 0.05 * 2^i at every token of level i.

    Levels count from the coarsest, as released MaskDINO weights expect.

    Returns:
        (B, S, C) memory, with zeros at invalid tokens, and (B, S, 4) logits of the boxes, infinite at invalid tokens.
        A token is invalid in padding or within .01 of the frame's border.
    """
    levels = range(len(features.shapes))
    boxes = torch.cat([_anchors(i, features.shapes, features.valid_ratios) for i in levels], dim=1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1, keepdim=True)
    if features.padding is not None:
        valid = valid & ~features.padding[..., None]
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~valid, torch.inf)
    return features.memory.masked_fill(~valid, 0.0), logits


def _anchors(level: int, shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """(B, height * width, 4) boxes of one level, in [0, 1] of the unpadded frame."""
    height, width = shapes[level]
    y = torch.arange(height, device=valid_ratios.device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=valid_ratios.device, dtype=torch.float32) + 0.5
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
    unpadded = valid_ratios[:, level] * constant((width, height), valid_ratios)
    centres = grid / unpadded[:, None]
    return torch.cat((centres, torch.full_like(centres, 0.05 * 2**level)), dim=-1)
