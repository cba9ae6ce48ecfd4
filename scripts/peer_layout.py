"""The peer of the benchmark: the layout in which detrex's MaskDINO computes the model, with our weights.

It differs from the package in these points only:

- deformable attention calls `grid_sample` once per level;
- self-attention also returns its averaged weights;
- images and maps have torch's default memory format, and frozen norms are `F.batch_norm`;
- class and box heads run on all tokens, and all heads run behind every decoder layer;
- every layer predicts the dense masks of all queries, and Mask2Box multiplies planes of coordinates;
- every mask is upsampled to the input size and again to the output size;
- matching costs are computed and assigned for every frame and layer, with a device synchronisation each.

Results are equal, so the peer also tests the package. `peer_of` turns a copy of a model into its peer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local2global.modeling import backbone, deformable, encoder, layers, segmenter
from local2global.modeling.criterion import Criterion
from local2global.modeling.layers import inverse_sigmoid
from local2global.modeling.losses import (
    dice_loss,
    giou_loss,
    l1_box_loss,
    sample_points,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from local2global.modeling.matcher import assign, match_clip
from local2global.randomness import keyed_generator
from local2global.structures import (
    Clip,
    FrameFeatures,
    FramePredictions,
    LayerPredictions,
    Positions,
    Proposals,
    Queries,
    Shapes,
    padded_pixels,
)


def grid_sample_levels(values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples with one `grid_sample` per level; all samples are stacked first.

    Args:
        values: (B, S, heads, D).
        shapes: (height, width) of every level.
        locations: (B, Q, heads, L, points, 2) in [0, 1].
        weights: (B, Q, heads, L, points).

    Returns:
        (B, Q, heads * D).
    """
    batch, _, heads, depth = values.shape
    queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    for level, tokens in enumerate(values.split([height * width for height, width in shapes], dim=1)):
        maps = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, depth, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(maps, grid, mode="bilinear", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    summed = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(dim=-1)
    return summed.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


class DeformableAttention(deformable.DeformableAttention):
    """Deformable attention with one `grid_sample` per level."""

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        value: Tensor,
        shapes: Shapes,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Same inputs and output as the package's module."""
        batch, queries, _ = query.shape
        values = self.value_proj(value)
        if padding is not None:
            values = values.masked_fill(padding[..., None], 0.0)
        values = values.view(batch, values.shape[1], self.num_heads, -1)
        grid = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*grid, 2)
        weights = self.attention_weights(query).view(*grid[:3], -1).softmax(dim=-1).view(grid)
        if references.shape[-1] == 2:
            sizes = offsets.new_tensor([(width, height) for height, width in shapes])
            locations = references[:, :, None, :, None] + offsets / sizes[:, None]
        else:
            centre, size = references[:, :, None, :, None].split(2, dim=-1)
            locations = centre + offsets / self.num_points * size * 0.5
        return self.output_proj(grid_sample_levels(values, shapes, locations, weights))


class Attention(layers.Attention):
    """Attention that also averages its weights over the heads, the default of `nn.MultiheadAttention`."""

    def forward(
        self,
        x: Tensor,
        x_pos: Tensor,
        memory: Tensor | None = None,
        memory_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Same inputs and output as the package's module."""
        memory, memory_pos = (x, x_pos) if memory is None else (memory, memory_pos)
        key = memory if memory_pos is None else memory + memory_pos
        return self.norm(x + self.attention(x + x_pos, key, memory, attn_mask=attn_mask)[0])


class FrozenBatchNorm(backbone.FrozenBatchNorm):
    """`F.batch_norm` without gradients, multiplication and addition with them, like detectron2."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *statistics, False, 0, self.eps)


class ResNet(backbone.ResNet):
    """ResNet with maps in torch's default memory format."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps res2 to res5."""
        x = F.max_pool2d(F.relu(self.stem["conv1"](images)), 3, stride=2, padding=1)
        maps = {}
        for name in self.channels:
            x = self.get_submodule(name)(x)
            maps[name] = x
        return maps


class PixelEncoder(encoder.PixelEncoder):
    """Pixel encoder with maps in torch's default memory format."""

    def fuse(self, lateral: Tensor, top: Tensor) -> Tensor:
        """One FPN step, as in the package."""
        top = F.interpolate(top, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(F.relu(self.layer_1(self.adapter_1(lateral) + top)))


@dataclass(frozen=True)
class DensePredictions(LayerPredictions):
    """Predictions of one layer with the masks (B, N, h, w) of all queries."""

    masks: Tensor | None = None


def planes_to_box(masks: Tensor, fallback: Tensor, extent: Tensor) -> Tensor:
    """Mask2Box by multiplication with planes of x and y coordinates."""
    height, width = masks.shape[-2:]
    inside = masks > 0
    y = torch.arange(height, dtype=torch.float, device=masks.device)
    x = torch.arange(width, dtype=torch.float, device=masks.device)
    y, x = torch.meshgrid(y, x, indexing="ij")

    def bounds(plane: Tensor) -> tuple[Tensor, Tensor]:
        high = (inside * plane).flatten(-2).amax(dim=-1)
        low = (inside * plane).masked_fill(~inside, 1e8).flatten(-2).amin(dim=-1)
        return low, high + 1

    (left, right), (top, bottom) = bounds(x), bounds(y)
    corners = torch.stack((left, top, right, bottom), dim=-1) / torch.cat((extent, extent), dim=-1)[:, None]
    low, high = corners.clamp(max=1).split(2, dim=-1)
    boxes = torch.cat(((low + high) / 2, high - low), dim=-1)
    return torch.where(inside.flatten(-2).any(dim=-1, keepdim=True), boxes, fallback)


class Segmenter(segmenter.Segmenter):
    """All heads on all tokens and behind every layer."""

    def propose(self, features: FrameFeatures) -> Proposals:
        """Two-stage selection, as in the package."""
        memory, anchors = segmenter.proposal_anchors(features)
        tokens = self.enc_output_norm(self.enc_output(memory))
        scores = self.class_embed(tokens).amax(dim=-1)
        all_boxes = self.decoder.bbox_embed(tokens) + anchors
        if features.padding is not None:
            scores = scores.masked_fill(features.padding, -torch.inf)
        top = scores.topk(self.num_queries, dim=1).indices[..., None]
        embed = tokens.gather(1, top.expand(-1, -1, tokens.shape[-1]))
        boxes = all_boxes.gather(1, top.expand(-1, -1, 4)).sigmoid()
        local = self._predict(embed, boxes, features)
        assert local.masks is not None
        mask_boxes = planes_to_box(local.masks.detach(), boxes.detach(), features.extent)
        return Proposals(embed.detach(), mask_boxes, local)

    def decode(
        self, queries: Queries, positions: Positions, features: FrameFeatures, local: LayerPredictions
    ) -> FramePredictions:
        """Decoder and heads, as in the package."""
        first = self._predict(queries.embed, None, features)
        boxes = positions.boxes
        if boxes is None:
            boxes = planes_to_box(first.masks.detach(), queries.boxes, features.extent)
        output = self.decoder(queries.embed, boxes, features)
        predictions = [first]
        for hidden, reference in zip(output.hidden, output.references, strict=True):
            refined = (self.decoder.bbox_embed(hidden) + inverse_sigmoid(reference)).sigmoid()
            predictions.append(self._predict(hidden, refined, features))
        last = predictions[-1]
        masks = last.masks.detach()
        return FramePredictions(
            logits=last.logits,
            boxes=last.boxes,
            masks=masks,
            extent=features.extent,
            queries=Queries(output.raw[-1], planes_to_box(masks, boxes, features.extent)),
            layers=tuple(predictions),
            local=local,
        )

    def _predict(self, x: Tensor, boxes: Tensor | None, features: FrameFeatures) -> DensePredictions:
        normed = self.decoder.norm(x)
        embed = self.mask_embed(normed)
        masks = torch.einsum("bqc,bchw->bqhw", embed, features.mask_features)
        masks = masks.masked_fill(padded_pixels(features.extent, *masks.shape[-2:])[:, None], 0.0)
        return DensePredictions(self.class_embed(normed), boxes, embed, masks)


class PeerCriterion(Criterion):
    """Costs, an assignment on the host and losses for every frame and layer.

    Each layer is assigned on its own, as in detrex. The losses then use the method's assignment, so that both arms
    compute the same numbers.
    """

    def forward(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
        normalizer: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses with the names of the package."""
        tracked, local = self._assignments(clips, features, predictions)
        length = len(features)
        supervised = [self.supervision(length, keyed_generator(*clip.key, "supervision")) for clip in clips]
        losses: dict[str, Tensor] = {}
        for t, step in enumerate(predictions):
            batch = [b for b in range(len(clips)) if supervised[b][t]]
            num_masks = max(1, sum(int(clips[b].targets.visible[:, t].sum()) for b in batch))
            divisor = num_masks if normalizer is None else normalizer[t]
            last = len(step.layers) - 1
            sets = {(f"_{i}" if i < last else ""): layer for i, layer in enumerate(step.layers)}
            for name, output in {**sets, "_local": step.local}.items():
                for b in batch:
                    indices = local[t, b] if name == "_local" else tracked[b]
                    for term, value in self._losses(clips[b], t, b, output, indices, features[t]).items():
                        key = f"loss_{term}{name}"
                        losses[key] = losses.get(key, 0) + self.weights[term] * value / divisor
        return losses

    @torch.no_grad()
    def _assignments(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
    ) -> tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray]]:
        """Query of each instance (-1 for none): per clip for the tracked slots, per frame for local queries."""
        final: list[dict[int, np.ndarray]] = [{} for _ in clips]
        local: dict[tuple[int, int], np.ndarray] = {}
        for t, step in enumerate(predictions):
            for b, clip in enumerate(clips):
                visible = clip.targets.visible[:, t].cpu().numpy().nonzero()[0]
                for output in (*step.layers, step.local):
                    with_boxes = output if output.boxes is not None else replace(output, boxes=step.boxes)
                    cost = self._pair_costs(clip, t, b, with_boxes, features[t]).cpu().numpy()
                    rows, columns = assign(cost[:, visible])
                final[b][t] = self._pair_costs(clip, t, b, step.layers[-1], features[t]).cpu().numpy()
                local[t, b] = np.full(len(clip.targets), -1)
                local[t, b][visible[columns]] = rows
        tracked = [
            match_clip(costs, clip.targets.visible.cpu().numpy().T)
            for costs, clip in zip(final, clips, strict=True)
        ]
        return tracked, local

    def _pair_costs(
        self, clip: Clip, t: int, b: int, output: DensePredictions, features: FrameFeatures
    ) -> Tensor:
        """(N, M) matching costs of one frame."""
        generator = keyed_generator(*clip.key, "cost points", t, device=output.logits.device)
        points = torch.rand(1, self.matcher.num_points, 2, generator=generator, device=output.logits.device)
        targets, queries = clip.targets, output.masks.shape[1]
        extent = features.extent[b].expand(queries, 2)
        src = sample_points(output.masks[b][:, None], points.expand(queries, -1, -1), extent)[:, 0]
        tgt_masks = targets.masks[:, t, None].float()
        tgt = sample_points(tgt_masks, points.expand(len(targets), -1, -1))[:, 0]
        return self.matcher.cost(
            output.logits[b],
            output.boxes[b],
            src,
            targets.labels,
            targets.boxes[:, t],
            tgt,
            loss_weights=self.weights,
        )

    def _losses(
        self,
        clip: Clip,
        t: int,
        b: int,
        output: DensePredictions,
        indices: np.ndarray,
        features: FrameFeatures,
    ) -> dict[str, Tensor]:
        """Losses of one frame and one set of predictions, summed over instances."""
        targets, device = clip.targets, output.logits.device
        rows = ((indices >= 0) & targets.visible[:, t].cpu().numpy()).nonzero()[0]
        slots = torch.from_numpy(indices[rows]).to(device)
        onehot = torch.zeros_like(output.logits[b])
        onehot[slots, targets.labels[rows]] = 1.0
        losses = {"cls": sigmoid_focal_loss(output.logits[b], onehot).sum()}
        generator = keyed_generator(*clip.key, "loss points", t, device=device)
        candidates = self.sampler.candidates(len(targets), generator)[rows]
        if not len(rows):
            return losses
        src_masks, extent = output.masks[b, slots][:, None], features.extent[b].expand(len(rows), 2)
        with torch.no_grad():
            chosen = self._choose(sample_points(src_masks, candidates, extent)[:, 0])
            points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
            tgt = sample_points(targets.masks[rows, t, None].float(), points)[:, 0]
        src = sample_points(src_masks, points, extent)[:, 0]
        losses["mask"], losses["dice"] = sigmoid_ce_loss(src, tgt).sum(), dice_loss(src, tgt).sum()
        if output.boxes is not None:
            src_boxes, tgt_boxes = output.boxes[b, slots], targets.boxes[rows, t]
            losses["box"] = l1_box_loss(src_boxes, tgt_boxes).sum()
            losses["giou"] = giou_loss(src_boxes, tgt_boxes).sum()
        return losses

    def _choose(self, logits: Tensor) -> Tensor:
        """The points of the sampler, sorted by uncertainty first."""
        num_candidates = int(self.sampler.num_points * self.sampler.oversample_ratio)
        num_uncertain = int(self.sampler.num_points * self.sampler.importance_ratio)
        uncertain = (-logits[:, :num_candidates].abs()).topk(num_uncertain, dim=1).indices
        uniform = torch.arange(num_candidates, logits.shape[1], device=logits.device)
        return torch.cat((uncertain, uniform.expand(len(logits), -1)), dim=1)


def upsample_twice(
    masks: Tensor, padded: tuple[int, int], unpadded: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """(1, N, h, w) mask logits to the padded input size, cropped to the unpadded size, to (N, *size) logits."""
    masks = F.interpolate(masks, padded, mode="bilinear", align_corners=False)
    masks = masks[..., : unpadded[0], : unpadded[1]]
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)[0]


def read_out(
    predictions: FramePredictions, padded: tuple[int, int], unpadded: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The 100 best (slot, class) pairs of a frame: slots, class score times mask score, masks at full size.

    Every mask is upsampled twice before the pairs are selected, and every pair's mask is scored at full size.
    """
    scores = predictions.logits[0].sigmoid()
    top, pairs = scores.flatten().topk(min(100, scores.numel()))
    slots = pairs // scores.shape[1]
    full = upsample_twice(predictions.masks, padded, unpadded, size)[slots]
    positive = (full > 0).float()
    mask_scores = (full.sigmoid().flatten(1) * positive.flatten(1)).sum(1) / (
        positive.flatten(1).sum(1) + 1e-6
    )
    return slots, top * mask_scores, positive.bool()


_PEERS: dict[type[nn.Module], type[nn.Module]] = {
    deformable.DeformableAttention: DeformableAttention,
    layers.Attention: Attention,
    backbone.FrozenBatchNorm: FrozenBatchNorm,
    backbone.ResNet: ResNet,
    encoder.PixelEncoder: PixelEncoder,
    segmenter.Segmenter: Segmenter,
    Criterion: PeerCriterion,
}


def peer_of(ours: nn.Module) -> nn.Module:
    """Return a copy of a module with the same weights in the peer's layout."""
    peer = copy.deepcopy(ours)
    for module in peer.modules():
        module.__class__ = _PEERS.get(type(module), type(module))
    return peer
