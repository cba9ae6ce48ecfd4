"""The training objective, Eq. (4): L = sum_t (l_cls L_cls + l_ce L_ce + l_dice L_dice), and the box terms.

Each instance is matched once, on the first frame where it is visible, by the final layer; that assignment serves all
layers and all later frames.  Reduced supervision leaves some early frames out of the sum.  The local queries, which
have no identity, are matched anew on every supervised frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..randomness import keyed_generator
from ..structures import Clip, ClipTargets, FrameFeatures, FramePredictions, LayerPredictions, Tracks
from .layers import mask_logits
from .losses import (
    PointSampler,
    dice_loss,
    giou_loss,
    l1_box_loss,
    sample_points,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from .matcher import Matcher, assign

#: MaskDINO's weights, which are the matching costs too.
WEIGHTS = {"cls": 4.0, "mask": 5.0, "dice": 5.0, "box": 5.0, "giou": 2.0}


@dataclass(frozen=True)
class FullSupervision:
    """A loss on every frame (Table 6, row 1)."""

    def __call__(self, length: int, generator: torch.Generator) -> list[bool]:
        """Which of `length` frames are supervised."""
        del generator
        return [True] * length


@dataclass(frozen=True)
class ReducedSupervision:
    """Reduced supervision (section 3.2): between 1 and T - 2 of the frames before the last have no loss."""

    def __call__(self, length: int, generator: torch.Generator) -> list[bool]:
        """Which of `length` frames are supervised: at least two (or all there are), always the last."""
        if length < 3:
            return [True] * length
        skipped = int(torch.randint(1, length - 1, (), generator=generator))
        order = torch.randperm(length - 1, generator=generator)[:skipped].tolist()
        return [t not in order for t in range(length)]


@dataclass(frozen=True)
class _Frame:
    """One clip on one frame: where the rows of its predictions lie, and its truth."""

    clip: int
    time: int
    supervised: bool
    targets: ClipTargets
    features: FrameFeatures
    points: Tensor  # (1, P, 2) at which costs are computed

    @property
    def visible(self) -> Tensor:
        return self.targets.visible[:, self.time].nonzero().flatten()


class Criterion(nn.Module):
    """The losses of a batch of clips.

    Args:
        matcher: costs.
        sampler: points of the mask losses.
        supervision: which frames have a loss.
        weights: of the terms `cls`, `mask`, `dice`, `box`, `giou`; all five must be there.
    """

    def __init__(
        self,
        matcher: Matcher,
        sampler: PointSampler,
        supervision: ReducedSupervision | FullSupervision,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.weights = dict(WEIGHTS if weights is None else weights)
        if set(self.weights) != set(WEIGHTS):
            raise ValueError(f"weights: expected {sorted(WEIGHTS)}, got {sorted(self.weights)}")
        self.matcher, self.sampler, self.supervision = matcher, sampler, supervision

    def forward(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
    ) -> dict[str, Tensor]:
        """Losses, weighted, to be added up.

        Args:
            clips: B clips of T frames with targets, on the predictions' device.
            features: of the T time steps.
            predictions: of the T time steps, with all layers.

        Returns:
            `loss_<term>` of the final layer, `loss_<term>_<i>` of layer i < last (0 is the aligner's output, which has
            no box), `loss_<term>_local` of the local queries.
        """
        plan = self._plan(clips, features)
        tracks, local = self._match(plan, clips, predictions)
        device = predictions[0].logits.device
        supervised = [f for f in plan if f.supervised]
        counts = torch.zeros(len(predictions), device=device)
        for frame in supervised:
            counts[frame.time] += frame.targets.visible[:, frame.time].sum()
        counts = _mean_over_ranks(counts).clamp(min=1)

        depth = len(predictions[0].layers)
        totals: dict[str, Tensor] = {}
        for frame in supervised:
            visible = frame.visible
            slots = tracks[frame.clip].slots.to(device)[visible]
            owned = slots >= 0
            candidates = self._candidates(clips[frame.clip], frame, len(visible))
            answer = predictions[frame.time]
            terms = self._layers(answer.layers, frame, slots[owned], visible[owned], candidates[owned])
            for name, values in terms.items():
                first = depth - len(values)
                for i, value in enumerate(values, start=first):
                    key = f"loss_{name}" if i == depth - 1 else f"loss_{name}_{i}"
                    totals[key] = totals.get(key, 0.0) + self.weights[name] * value / counts[frame.time]
            assert answer.local is not None
            rows, columns = (torch.from_numpy(a).to(device) for a in local[frame.clip, frame.time])
            terms = self._layers((answer.local,), frame, rows, visible[columns], candidates[columns])
            for name, values in terms.items():
                key = f"loss_{name}_local"
                totals[key] = totals.get(key, 0.0) + self.weights[name] * values[0] / counts[frame.time]
        return totals

    def _plan(self, clips: Sequence[Clip], features: Sequence[FrameFeatures]) -> list[_Frame]:
        """Every clip on every frame, in order, with the draws that belong to it."""
        plan = []
        for b, clip in enumerate(clips):
            assert clip.targets is not None
            kept = self.supervision(len(features), keyed_generator(*clip.key, "supervision"))
            for t, step in enumerate(features):
                device = step.memory.device
                generator = keyed_generator(*clip.key, "cost points", t, device=device)
                points = torch.rand(1, self.matcher.num_points, 2, generator=generator, device=device)
                one = FrameFeatures(
                    step.memory[b : b + 1],
                    step.shapes,
                    step.padding[b : b + 1],
                    step.mask_features[b : b + 1],
                    step.extent[b : b + 1],
                    step.valid_ratios[b : b + 1],
                )
                plan.append(_Frame(b, t, kept[t], clip.targets, one, points))
        return plan

    def _candidates(self, clip: Clip, frame: _Frame, count: int) -> Tensor:
        """(M_visible, R, 2) points of the mask losses; all layers choose theirs among the same ones."""
        device = frame.features.memory.device
        return self.sampler.candidates(
            count, keyed_generator(*clip.key, "loss points", frame.time, device=device)
        )

    @torch.no_grad()
    def _match(
        self, plan: Sequence[_Frame], clips: Sequence[Clip], predictions: Sequence[FramePredictions]
    ) -> tuple[list[Tracks], dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]]:
        """Tracks of every clip, and the local queries' pairs (query, visible instance) of every supervised frame.

        All costs cross to the host together.
        """
        costs: list[Tensor] = []
        seen = {b: torch.zeros(len(c.targets or ()), dtype=torch.bool) for b, c in enumerate(clips)}
        visibility = {b: c.targets.visible.cpu() for b, c in enumerate(clips) if c.targets is not None}
        newborn: list[Tensor] = []
        for frame in plan:
            now = visibility[frame.clip][:, frame.time]
            newborn.append((now & ~seen[frame.clip]).nonzero().flatten())
            seen[frame.clip] |= now
            answer = predictions[frame.time]
            final = LayerPredictions(answer.logits, answer.boxes, answer.masks)
            costs.append(self._cost(final, answer.masks, frame, newborn[-1]))
            if frame.supervised:
                assert answer.local is not None
                masks = mask_logits(answer.local.mask_embed[frame.clip][None], frame.features)
                costs.append(self._cost(answer.local, masks, frame, now.nonzero().flatten(), only=True))
        host = iter(_to_host(costs))

        tracks = [np.full(len(c.targets or ()), -1, dtype=np.int64) for c in clips]
        local = {}
        for frame, born in zip(plan, newborn, strict=True):
            cost = next(host)
            taken = np.zeros(len(cost), dtype=bool)
            owned = tracks[frame.clip]
            taken[owned[owned >= 0]] = True
            rows, columns = assign(cost, taken)
            owned[born.numpy()[columns]] = rows
            if frame.supervised:
                local[frame.clip, frame.time] = assign(next(host))
        return [Tracks(torch.from_numpy(slots)) for slots in tracks], local

    def _cost(
        self, answer: LayerPredictions, masks: Tensor, frame: _Frame, instances: Tensor, only: bool = False
    ) -> Tensor:
        """(N, M) costs of some instances on one frame."""
        b, t, targets = frame.clip, frame.time, frame.targets
        instances = instances.to(targets.labels.device)
        masks = masks if only else masks[b : b + 1]
        assert answer.boxes is not None
        return self.matcher.cost(
            answer.logits[b],
            answer.boxes[b],
            sample_points(masks, frame.points, frame.features.extent)[0],
            targets.labels[instances],
            targets.boxes[instances, t],
            sample_points(targets.masks[None, instances, t].float(), frame.points)[0],
        )

    def _layers(
        self,
        layers: Sequence[LayerPredictions],
        frame: _Frame,
        slots: Tensor,
        instances: Tensor,
        candidates: Tensor,
    ) -> dict[str, Tensor]:
        """Every term of some layers on one frame: a tensor of one value per layer (the last ones, for boxes)."""
        b, t, targets = frame.clip, frame.time, frame.targets
        with torch.autocast(candidates.device.type, enabled=False):
            logits = torch.stack([layer.logits[b] for layer in layers])
            wanted = torch.zeros_like(logits)
            wanted[:, slots, targets.labels[instances]] = 1.0
            terms = {"cls": sigmoid_focal_loss(logits, wanted).sum(dim=(1, 2))}

            embed = torch.stack([layer.mask_embed[b, slots] for layer in layers])
            truth = targets.masks[instances, t].float()
            terms["mask"], terms["dice"] = self._masks(embed, truth, frame.features, candidates)

            boxes = torch.stack([layer.boxes[b, slots] for layer in layers if layer.boxes is not None])
            true_boxes = targets.boxes[instances, t].expand_as(boxes)
            terms["box"] = l1_box_loss(boxes, true_boxes).sum(dim=1)
            terms["giou"] = giou_loss(boxes, true_boxes).sum(dim=1)
        return terms

    def _masks(
        self, embed: Tensor, truth: Tensor, features: FrameFeatures, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice losses of (layers, m, C) mask embeddings against (m, H, W) truth, summed over instances."""
        depth, count, _ = embed.shape
        if (
            not count
        ):  # nothing to see; the sum keeps the heads in the graph, as DistributedDataParallel needs
            nothing = embed.sum(dim=(1, 2)) + features.mask_features.sum() * 0
            return nothing, nothing
        logits = (
            mask_logits(embed.flatten(0, 1)[None], features)[0].unflatten(0, (depth, count)).transpose(0, 1)
        )
        with torch.no_grad():
            drawn = sample_points(logits, candidates, features.extent).transpose(0, 1)
            chosen = self.sampler.choose(drawn)
        points = candidates.expand(depth, -1, -1, -1).gather(2, chosen[..., None].expand(-1, -1, -1, 2))
        at_points = sample_points(
            logits.transpose(0, 1).flatten(0, 1)[:, None], points.flatten(0, 1), features.extent
        )
        true_at = sample_points(truth[:, None], candidates)[:, 0].expand(depth, -1, -1).gather(2, chosen)
        at_points = at_points.view(depth, count, -1)
        return sigmoid_ce_loss(at_points, true_at).sum(dim=1), dice_loss(at_points, true_at).sum(dim=1)


def _to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Matrices to numpy in one transfer."""
    flat = torch.cat([t.flatten() for t in tensors]).cpu().numpy() if tensors else np.zeros(0)
    ends = np.cumsum([t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(np.split(flat, ends[:-1]), tensors, strict=True)]


def _mean_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks divided by their number."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    dist.all_reduce(values)
    return values / dist.get_world_size()
