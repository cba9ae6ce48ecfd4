"""The peer of the benchmark: our model's weights, in the layout in which detrex's MaskDINO works.

Every class here has the constructor, the parameters and their names from the class of the package that it derives from,
and a `forward` of its own: deformable attention level by level through `grid_sample`; attention that also makes its
weights; all heads on all tokens and behind every layer; dense masks of all queries at every layer; Mask2Box through
coordinate planes; every mask upsampled to the input and again to the output; costs and an assignment for every
frame and layer, each waiting for the device.  `peer_of` turns a copy of a model into its peer.
It is slower on purpose and equal in results, so it is the oracle of the package's shortcuts too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from local2global.modeling import backbone, decoder, deformable, encoder, layers, segmenter
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


def grid_sample_levels(values: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, one `grid_sample` a level.

    Args:
        values: (B, S, heads, D).
        shapes: (height, width) of every level.
        places: (B, Q, heads, L, points, 2) in [0, 1].
        weights: (B, Q, heads, L, points).

    Returns:
        (B, Q, heads * D).
    """
    batch, _, heads, depth = values.shape
    queries = places.shape[1]
    grids = 2 * places - 1
    sampled = []
    for level, part in enumerate(values.split([height * width for height, width in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(batch * heads, depth, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    summed = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(dim=-1)
    return summed.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


class DeformableAttention(deformable.DeformableAttention):
    """Deformable attention level by level."""

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        value: Tensor,
        shapes: Shapes,
        padding: Tensor | None = None,
    ) -> Tensor:
        """As the package's."""
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
            places = references[:, :, None, :, None] + offsets / sizes[:, None]
        else:
            centre, size = references[:, :, None, :, None].split(2, dim=-1)
            places = centre + offsets / self.num_points * size * 0.5
        return self.output_proj(grid_sample_levels(values, shapes, places, weights))


class Attention(layers.Attention):
    """Attention that averages its weights over the heads for nobody, as `nn.MultiheadAttention` does unasked."""

    def forward(
        self,
        x: Tensor,
        x_pos: Tensor,
        memory: Tensor | None = None,
        memory_pos: Tensor | None = None,
        barred: Tensor | None = None,
    ) -> Tensor:
        """As the package's."""
        memory, memory_pos = (x, x_pos) if memory is None else (memory, memory_pos)
        key = memory if memory_pos is None else memory + memory_pos
        return self.norm(x + self.attention(x + x_pos, key, memory, attn_mask=barred)[0])


class FeedForward(layers.FeedForward):
    """Two linear layers, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """As the package's."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MLP(layers.MLP):
    """Linear layers, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """As the package's."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FrozenBatchNorm(backbone.FrozenBatchNorm):
    """Batch normalisation in its own pass over the map, as detectron2's."""

    def forward(self, x: Tensor) -> Tensor:
        """As the package's."""
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps
        )


class ResNet(backbone.ResNet):
    """Maps in torch's default memory format."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """As the package's."""
        x = F.max_pool2d(F.relu(self.stem["conv1"](images)), 3, stride=2, padding=1)
        maps = {}
        for name in self.channels:
            x = self.get_submodule(name)(x)
            maps[name] = x
        return maps


class EncoderLayer(encoder.EncoderLayer):
    """Attention, norm, feed-forward."""

    def forward(
        self, x: Tensor, pos: Tensor, references: Tensor, shapes: Shapes, padding: Tensor | None
    ) -> Tensor:
        """As the package's."""
        x = self.norm(x + self.self_attn(x + pos, references, x, shapes, padding))
        return self.ffn(x)


class PixelEncoder(encoder.PixelEncoder):
    """Convolutions as torch makes them."""

    def project(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """As the package's."""
        given = [proj(maps[name]) for proj, name in zip(self.input_proj, self.features, strict=False)]
        coarsest = max((maps[name] for name in reversed(self.features)), key=lambda m: m.shape[1])
        made: list[Tensor] = []
        for proj in self.input_proj[len(self.features) :]:
            coarsest = proj(coarsest)
            made.append(coarsest)
        return [*reversed(made), *given] if self.extra_first else [*given, *made]

    def fuse(self, lateral: Tensor, top: Tensor) -> Tensor:
        """As the package's."""
        top = F.interpolate(top, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_features(F.relu(self.layer_1(self.adapter_1(lateral) + top)))


class DecoderLayer(decoder.DecoderLayer):
    """Self-attention, cross-attention, feed-forward."""

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor | None,
        barred: Tensor | None = None,
    ) -> Tensor:
        """As the package's."""
        x = self.self_attn(x, pos, barred=barred)
        x = self.norm(x + self.cross_attn(x + pos, references, memory, shapes, padding))
        return self.ffn(x)


class Decoder(decoder.Decoder):
    """Layer by layer, every one with its own value projection of the whole memory."""

    def forward(
        self, queries: Tensor, boxes: Tensor, features: FrameFeatures, barred: Tensor | None = None
    ) -> decoder.DecoderOutput:
        """As the package's."""
        ratios = torch.cat((features.valid_ratios, features.valid_ratios), dim=-1)[:, None]
        raw, hidden, references, start = [], [], [boxes], boxes
        for layer in self.layers:
            pos = self.embed_boxes(start)
            looks = (start[:, :, None] * ratios).contiguous()
            queries = layer(queries, pos, looks, features.memory, features.shapes, features.padding, barred)
            raw.append(queries)
            hidden.append(self.norm(queries))
            references.append((self.bbox_embed(queries) + inverse_sigmoid(start)).sigmoid())
            start = references[-1].detach()
        return decoder.DecoderOutput(tuple(raw), tuple(hidden), tuple(references[:-1]))


@dataclass(frozen=True)
class DensePredictions(LayerPredictions):
    """A layer's predictions with the dense masks (B, N, h, w) of all its queries."""

    masks: Tensor | None = None


def planes_to_box(masks: Tensor, fallback: Tensor, extent: Tensor) -> Tensor:
    """Mask2Box through a plane of coordinates for each of the box's four sides."""
    height, width = masks.shape[-2:]
    inside = masks > 0
    y = torch.arange(height, dtype=torch.float, device=masks.device)
    x = torch.arange(width, dtype=torch.float, device=masks.device)
    y, x = torch.meshgrid(y, x, indexing="ij")

    def ends(plane: Tensor) -> tuple[Tensor, Tensor]:
        high = (inside * plane).flatten(-2).amax(dim=-1)
        low = (inside * plane).masked_fill(~inside, 1e8).flatten(-2).amin(dim=-1)
        return low, high + 1

    (left, right), (top, bottom) = ends(x), ends(y)
    corners = torch.stack((left, top, right, bottom), dim=-1) / torch.cat((extent, extent), dim=-1)[:, None]
    low, high = corners.clamp(max=1).split(2, dim=-1)
    boxes = torch.cat(((low + high) / 2, high - low), dim=-1)
    return torch.where(inside.flatten(-2).any(dim=-1, keepdim=True), boxes, fallback)


class Segmenter(segmenter.Segmenter):
    """All heads on all tokens, and behind every layer."""

    def propose(self, features: FrameFeatures) -> Proposals:
        """As the package's."""
        memory, anchors = segmenter.proposal_anchors(features)
        tokens = self.enc_output_norm(self.enc_output(memory))
        scores = self.class_embed(tokens)
        every_box = self.decoder.bbox_embed(tokens) + anchors
        scores = scores.amax(dim=-1)
        if features.padding is not None:
            scores = scores.masked_fill(features.padding, -torch.inf)
        best = scores.topk(self.num_queries, dim=1).indices[..., None]
        embed = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        boxes = every_box.gather(1, best.expand(-1, -1, 4)).sigmoid()
        local = self._predict(embed, boxes, features)
        assert local.masks is not None
        seen = planes_to_box(local.masks.detach(), boxes.detach(), features.extent)
        return Proposals(embed.detach(), local, lambda: seen)

    def decode(
        self, embed: Tensor, positions: Positions, features: FrameFeatures, local: LayerPredictions
    ) -> FramePredictions:
        """As the package's."""
        first = self._predict(embed, None, features)
        boxes = positions.boxes
        if not positions.current:
            boxes = planes_to_box(first.masks.detach(), boxes, features.extent)
        output = self.decoder(embed, boxes, features)
        every = [
            self._predict(
                hidden, (self.decoder.bbox_embed(hidden) + inverse_sigmoid(start)).sigmoid(), features
            )
            for hidden, start in zip(output.hidden, output.references, strict=True)
        ]
        last = every[-1]
        masks = last.masks.detach()
        return FramePredictions(
            logits=last.logits,
            boxes=last.boxes,
            masks=masks,
            extent=features.extent,
            queries=Queries(output.raw[-1], planes_to_box(masks, boxes, features.extent)),
            layers=(first, *every),
            local=local,
        )

    def _predict(self, x: Tensor, boxes: Tensor | None, features: FrameFeatures) -> DensePredictions:
        normed = self.decoder.norm(x)
        embed = self.mask_embed(normed)
        masks = torch.einsum("bqc,bchw->bqhw", embed, features.mask_features)
        masks = masks.masked_fill(padded_pixels(features.extent, *masks.shape[-2:])[:, None], 0.0)
        return DensePredictions(self.class_embed(normed), boxes, embed, masks)


class PeerCriterion(Criterion):
    """Frame by frame and layer by layer: costs, an assignment on the host, then the losses.

    The assignments are made as detrex makes them, for every layer anew; the losses then use the method's own (one per
    instance for all layers), so that both arms end at the same numbers.
    """

    def forward(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
    ) -> dict[str, Tensor]:
        """As the package's."""
        slots, local = self._assignments(clips, features, predictions)
        kept = [self.supervision(len(features), keyed_generator(*clip.key, "supervision")) for clip in clips]
        total: dict[str, Tensor] = {}
        for t, step in enumerate(predictions):
            on = [b for b in range(len(clips)) if kept[b][t]]
            count = max(1, sum(int(clips[b].targets.visible[:, t].sum()) for b in on))
            last = len(step.layers) - 1
            sets = [*((f"_{i}" if i < last else "", one) for i, one in enumerate(step.layers))]
            for name, one in [*sets, ("_local", step.local)]:
                for b in on:
                    owned = local[t, b] if name == "_local" else slots[b]
                    for term, value in self._losses_of(clips[b], t, b, one, owned, features[t]).items():
                        key = f"loss_{term}{name}"
                        total[key] = total.get(key, 0) + self.weights[term] * value / count
        return total

    @torch.no_grad()
    def _assignments(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
    ) -> tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray]]:
        final: list[list[np.ndarray]] = [[] for _ in clips]
        local: dict[tuple[int, int], np.ndarray] = {}
        for t, step in enumerate(predictions):
            for b, clip in enumerate(clips):
                seen = clip.targets.visible[:, t].cpu().numpy().nonzero()[0]
                for one in (*step.layers, step.local):
                    boxed = one if one.boxes is not None else replace(one, boxes=step.boxes)
                    cost = self._cost(clip, t, b, boxed, features[t]).cpu().numpy()  # waits for the device
                    rows, columns = assign(cost[:, seen])
                final[b].append(self._cost(clip, t, b, step.layers[-1], features[t]).cpu().numpy())
                local[t, b] = np.full(len(clip.targets), -1)
                local[t, b][seen[columns]] = rows
        slots = [
            match_clip(dict(enumerate(final[b])), clip.targets.visible.cpu().numpy().T)
            for b, clip in enumerate(clips)
        ]
        return slots, local

    def _cost(self, clip: Clip, t: int, b: int, one: DensePredictions, features: FrameFeatures) -> Tensor:
        device = one.logits.device
        points = torch.rand(
            1,
            self.matcher.num_points,
            2,
            generator=keyed_generator(*clip.key, "cost points", t, device=device),
            device=device,
        )
        truth, count = clip.targets, one.masks.shape[1]
        masks = sample_points(
            one.masks[b][:, None], points.expand(count, -1, -1), features.extent[b].expand(count, 2)
        )
        true = sample_points(truth.masks[:, t, None].float(), points.expand(len(truth), -1, -1))
        return self.matcher.cost(
            one.logits[b], one.boxes[b], masks[:, 0], truth.labels, truth.boxes[:, t], true[:, 0]
        )

    def _losses_of(
        self, clip: Clip, t: int, b: int, one: DensePredictions, owned: np.ndarray, features: FrameFeatures
    ) -> dict[str, Tensor]:
        truth = clip.targets
        rows = ((owned >= 0) & truth.visible[:, t].cpu().numpy()).nonzero()[0]
        slots = torch.from_numpy(owned[rows]).to(one.logits.device)
        wanted = torch.zeros_like(one.logits[b])
        wanted[slots, truth.labels[rows]] = 1.0
        losses = {"cls": sigmoid_focal_loss(one.logits[b], wanted).sum()}
        generator = keyed_generator(*clip.key, "loss points", t, device=one.logits.device)
        candidates = self.sampler.candidates(len(truth), generator)[rows]
        if not len(rows):
            return losses
        masks, extent = one.masks[b, slots][:, None], features.extent[b].expand(len(rows), 2)
        with torch.no_grad():
            chosen = self._choose(sample_points(masks, candidates, extent)[:, 0])
            points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
            # the truth at the candidates, not at the points: the same numbers
            true = sample_points(truth.masks[rows, t, None].float(), points)[:, 0]
        at = sample_points(masks, points, extent)[:, 0]
        losses["mask"], losses["dice"] = sigmoid_ce_loss(at, true).sum(), dice_loss(at, true).sum()
        if one.boxes is not None:
            boxes, true_boxes = one.boxes[b, slots], truth.boxes[rows, t]
            losses["box"] = l1_box_loss(boxes, true_boxes).sum()
            losses["giou"] = giou_loss(boxes, true_boxes).sum()
        return losses

    def _choose(self, logits: Tensor) -> Tensor:
        """The sampler's choice, the most uncertain first."""
        drawn = int(self.sampler.num_points * self.sampler.oversample_ratio)
        count = int(self.sampler.num_points * self.sampler.importance_ratio)
        uncertain = (-logits[:, :drawn].abs()).topk(count, dim=1).indices
        rest = torch.arange(drawn, logits.shape[1], device=logits.device).expand(len(logits), -1)
        return torch.cat((uncertain, rest), dim=1)


def upsample_twice(
    masks: Tensor, padded: tuple[int, int], own: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """(1, N, h, w) logits of all queries to the padded input, cut to its own part, to (N, *size) logits."""
    masks = F.interpolate(masks, padded, mode="bilinear", align_corners=False)
    masks = masks[..., : own[0], : own[1]]
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)[0]


def read_out(
    predictions: FramePredictions, padded: tuple[int, int], own: tuple[int, int], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The 100 best (slot, class) pairs of a frame: slots, class scores times mask scores, and masks at full size.

    Every mask is upsampled twice before the best are taken, and every pair's mask is scored at full size.
    """
    scores = predictions.logits[0].sigmoid()
    best, pairs = scores.flatten().topk(min(100, scores.numel()))
    slots = pairs // scores.shape[1]
    full = upsample_twice(predictions.masks, padded, own, size)[slots]
    positive = (full > 0).float()
    certainty = (full.sigmoid().flatten(1) * positive.flatten(1)).sum(1) / (positive.flatten(1).sum(1) + 1e-6)
    return slots, best * certainty, positive.bool()


_PEERS: dict[type[nn.Module], type[nn.Module]] = {
    deformable.DeformableAttention: DeformableAttention,
    layers.Attention: Attention,
    layers.FeedForward: FeedForward,
    layers.MLP: MLP,
    backbone.FrozenBatchNorm: FrozenBatchNorm,
    backbone.ResNet: ResNet,
    encoder.EncoderLayer: EncoderLayer,
    encoder.PixelEncoder: PixelEncoder,
    decoder.DecoderLayer: DecoderLayer,
    decoder.Decoder: Decoder,
    segmenter.Segmenter: Segmenter,
    Criterion: PeerCriterion,
}


def peer_of(ours: nn.Module) -> nn.Module:
    """A copy of a module with the same weights, in the peer's layout."""
    peer = copy.deepcopy(ours)
    for module in peer.modules():
        module.__class__ = _PEERS.get(type(module), type(module))
    return peer
