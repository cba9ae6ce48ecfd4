"""The objective, Eq. (4): L = sum_t (lambda_cls L_cls + lambda_ce L_ce + lambda_dice L_dice), plus two box terms.

`Criterion.forward` reads top-down: prepare targets, match, then `loss_labels`, `loss_masks`, `loss_boxes`.

Matching: each instance is matched once, on the first frame where it is visible, by the final layer's costs.  All layers
and all later frames use this assignment.  Local queries carry no identity and are re-matched on every supervised frame.
Reduced supervision: randomly selected frames before the last have no loss.

Shapes: F = T * B frames, time-major (frame t of clip b is row t * B + b); F' supervised frames; M instances of a clip,
padded to the largest clip; S prediction sets (not tokens); R candidate points and P points of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import check_range
from ..randomness import keyed_generator
from ..structures import Clip, FrameFeatures, FramePredictions, LayerPredictions
from .layers import mask_logits
from .losses import BOX_LOSSES, LABEL_LOSSES, MASK_LOSSES, WEIGHTS, PointSampler, sample_points
from .matcher import Matcher, match_clip, match_frame

#: Names of prediction sets, used as suffixes of loss names.  Layer i before the final layer is `_i`.
FINAL, LOCAL = "", "_local"
Sets = Mapping[str, LayerPredictions]


@dataclass(frozen=True)
class FullSupervision:
    """Every frame has a loss (Table 6, row 1)."""

    def __call__(self, length: int, generator: torch.Generator) -> list[bool]:
        """Whether each of `length` frames has a loss: all do."""
        del generator
        return [True] * length


@dataclass(frozen=True)
class ReducedSupervision:
    """Reduced supervision (section 3.2): 1 to T - 2 of the frames before the last have no loss."""

    def __call__(self, length: int, generator: torch.Generator) -> list[bool]:
        """(T,) flags: at least two frames, always the last one; all frames if T < 3."""
        if length < 3:
            return [True] * length
        num_skipped = int(torch.randint(1, length - 1, (), generator=generator))
        skipped = torch.randperm(length - 1, generator=generator)[:num_skipped].tolist()
        return [t not in skipped for t in range(length)]


@dataclass(frozen=True)
class _Batch:
    """Targets and mask features of all F frames of B clips.

    Attributes:
        clips: B clips.
        labels: (F, M) int64 class indices, 0 at padding.
        boxes: (F, M, 4).
        visible: (F, M) bool on the host, False at padding.
        supervised: (F',) int64 on the host, the frames with a loss in ascending order.
        frames: the same on the device.
        scale: (F',) float32, 1 / normalizer.
        mask_features: F tensors of (C, h, w).
        extent: (F, 2) width and height of the unpadded frame in mask pixels.
    """

    clips: Sequence[Clip]
    labels: Tensor
    boxes: Tensor
    visible: NDArray[np.bool_]
    supervised: NDArray[np.int64]
    frames: Tensor
    scale: Tensor
    mask_features: Sequence[Tensor]
    extent: Tensor

    def src_masks(self, f: int, embed: Tensor) -> Tensor:
        """(n, h, w) mask logits of (n, C) mask embeddings on frame f."""
        return mask_logits(embed[None], self.mask_features[f][None], self.extent[f : f + 1])[0]

    def tgt_masks(self, f: int) -> Tensor:
        """(m, H, W) float target masks of frame f, without padding rows."""
        targets = self.clips[f % len(self.clips)].targets
        assert targets is not None
        return targets.masks[:, f // len(self.clips)].float()

    def generator(self, f: int, purpose: str) -> torch.Generator:
        """Keyed generator, on the device, for a draw at frame f; `purpose` names the draw."""
        clip = self.clips[f % len(self.clips)]
        return keyed_generator(*clip.key, purpose, f // len(self.clips), device=self.scale.device)


@dataclass(frozen=True)
class _Matches:
    """The queries matched to instances on the supervised frames.

    Attributes:
        indices: (F', M) int64 query of each instance; 0 for unmatched pairs.
        matched: (F', M) float32, 1 for visible instances with a query, else 0.
        hidden: (F', M) float32, 1 for instances with a query that were visible before and are not now, else 0.
    """

    indices: Tensor
    matched: Tensor
    hidden: Tensor

    def src(self, values: Tensor) -> Tensor:
        """The rows of matched queries: (F', N, C) to (F', M, C)."""
        return values.gather(1, self.indices[..., None].expand(-1, -1, values.shape[-1]))


class Criterion(nn.Module):
    """The losses of a batch of clips.

    Args:
        matcher: matching costs; a cost weight of None uses the loss weight.
        sampler: points of the mask losses.
        supervision: draws which of T frames have a loss.
        weights: weights of the terms `cls`, `mask`, `dice`, `box`, `giou`; all five are required.
        things: number of thing classes.  Classes with index >= `things` are stuff and have no box cost or box loss.
            None: all classes are things.

    Raises:
        ValueError: if `weights` lacks a term or has an unknown one.
    """

    def __init__(
        self,
        matcher: Matcher,
        sampler: PointSampler,
        supervision: Callable[[int, torch.Generator], list[bool]],
        weights: Mapping[str, float] | None = None,
        things: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = dict(WEIGHTS if weights is None else weights)
        terms = {**LABEL_LOSSES, **MASK_LOSSES, **BOX_LOSSES}
        if set(self.weights) != set(terms):
            raise ValueError(f"weights: expected {sorted(terms)}, got {sorted(self.weights)}")
        for name, weight in self.weights.items():
            check_range(f"weights.{name}", weight, 0)
        self.matcher, self.sampler, self.supervision = matcher, sampler, supervision
        self.things = things

    def forward(
        self,
        clips: Sequence[Clip],
        features: Sequence[FrameFeatures],
        predictions: Sequence[FramePredictions],
        normalizer: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses, to be summed.

        Args:
            clips: B clips of T frames with targets on the predictions' device.
            features: of the T time steps.
            predictions: of the T time steps, with all layers.
            normalizer: (T,) divisors of the losses of each time step; `self.normalizer(clips)` if None.

        Returns:
            Scalars: `loss_<term>` of the final layer, `loss_<term>_<i>` of the layers before it (layer 0 is the
            aligner's output and has no box terms), `loss_<term>_local` of the local queries.

        Raises:
            ValueError: for an empty batch.
        """
        if not clips:
            raise ValueError("expected at least one clip")
        with torch.autocast(predictions[0].logits.device.type, enabled=False):
            batch = self._prepare(clips, features, normalizer)
            outputs = _join_time_steps(predictions)
            matches = self._match(outputs, batch)
            outputs = {
                name: _apply(lambda x: x.index_select(0, batch.frames), output)
                for name, output in outputs.items()
            }
            terms = (
                self.loss_labels(outputs, matches, batch)
                | self.loss_masks(outputs, matches, batch)
                | self.loss_boxes(outputs, matches, batch)
            )
        return {
            f"loss_{term}{name}": self.weights[term] * loss
            for term, losses in terms.items()
            for name, loss in losses.items()
        }

    def normalizer(self, clips: Sequence[Clip], device: torch.device | str = "cpu") -> Tensor:
        """Divisors of the losses of each time step: the number of instances visible there, at least 1.

        Clips without a loss at t are excluded.  Counts are averaged over processes, as DDP averages gradients.
        To accumulate gradients, compute the normalizer once from all clips of an optimizer step.  Pass it to every
        `forward`; the micro-batch losses then add up to the loss of one large batch.

        Args:
            clips: all clips of this process, with targets.
            device: where the counts are summed over processes.

        Returns:
            (T,) float32, T of the longest clip.
        """
        counts = np.zeros(max(map(len, clips)), dtype=np.float32)
        for clip in clips:
            assert clip.targets is not None
            visible = clip.targets.visible.cpu().numpy().sum(axis=0)
            counts[: len(clip)] += visible * self._supervised(clip)
        normalizer = _send(counts, device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(normalizer)
            normalizer = normalizer / dist.get_world_size()
        return normalizer.clamp(min=1)

    def _supervised(self, clip: Clip) -> NDArray[np.bool_]:
        """(T,) bool, the frames of a clip that have a loss."""
        return np.array(self.supervision(len(clip), keyed_generator(*clip.key, "supervision")))

    def _prepare(
        self, clips: Sequence[Clip], features: Sequence[FrameFeatures], normalizer: Tensor | None
    ) -> _Batch:
        """Pads the targets of all clips to M instances, stacks them, and draws the supervised frames."""
        extent = torch.cat([step.extent for step in features])
        targets = [clip.targets for clip in clips if clip.targets is not None]
        labels = pad_sequence([t.labels for t in targets], batch_first=True)
        boxes = pad_sequence([t.boxes for t in targets], batch_first=True)
        visible = pad_sequence([t.visible.cpu() for t in targets], batch_first=True)
        supervised = np.flatnonzero(np.stack([self._supervised(clip) for clip in clips], axis=1))
        normalizer = self.normalizer(clips, extent.device) if normalizer is None else normalizer
        return _Batch(
            clips=clips,
            labels=labels.repeat(len(features), 1),
            boxes=boxes.permute(2, 0, 1, 3).flatten(0, 1),
            visible=visible.permute(2, 0, 1).flatten(0, 1).numpy(),
            supervised=supervised,
            frames=_send(supervised, extent.device),
            scale=1 / normalizer[_send(supervised // len(clips), extent.device)],
            # Single frames: a stacked copy would add to the peak memory of the step.
            mask_features=[frame for step in features for frame in step.mask_features.float().unbind()],
            extent=extent,
        )

    @torch.no_grad()
    def _match(self, outputs: Sets, batch: _Batch) -> dict[str, _Matches]:
        """Matches instances to slots by the final layer, and to local queries on supervised frames."""
        num_clips = len(batch.clips)
        visible = [batch.visible[b::num_clips] for b in range(num_clips)]
        # Costs are computed only on frames where a matching needs them.
        first_visible = np.stack([(v & (v.cumsum(axis=0) == 1)).any(axis=1) for v in visible], axis=1)
        final_frames = np.flatnonzero(first_visible).tolist()
        local_frames = [f for f in batch.supervised.tolist() if batch.visible[f].any()]
        costs = [self._cost(outputs[FINAL], batch, f) for f in final_frames]
        costs += [self._cost(outputs[LOCAL], batch, f) for f in local_frames]
        # The only device synchronisation of the criterion.
        arrays = list(torch.stack(costs).cpu().numpy()) if costs else []
        final_costs = dict(zip(final_frames, arrays[: len(final_frames)], strict=True))

        tracked, local = np.full((2, *batch.visible.shape), -1)
        for b in range(num_clips):
            clip_costs = {f // num_clips: cost for f, cost in final_costs.items() if f % num_clips == b}
            tracked[b::num_clips] = match_clip(clip_costs, visible[b])
        for f, cost in zip(local_frames, arrays[len(final_frames) :], strict=True):
            local[f] = match_frame(cost, batch.visible[f])
        shared = _matches(tracked, batch)
        return {name: shared for name in outputs} | {LOCAL: _matches(local, batch)}

    def _cost(self, output: LayerPredictions, batch: _Batch, f: int) -> Tensor:
        """(N, M) matching costs of frame f.  One frame at a time limits the peak memory."""
        assert output.boxes is not None
        labels, generator = batch.labels[f], batch.generator(f, "cost points")
        points = torch.rand(1, self.matcher.num_points, 2, generator=generator, device=labels.device)
        masks = batch.src_masks(f, output.mask_embed[f])[None]
        return self.matcher.cost(
            output.logits[f],
            output.boxes[f],
            sample_points(masks, points, batch.extent[f : f + 1])[0],
            labels,
            batch.boxes[f],
            _pad_rows(sample_points(batch.tgt_masks(f)[None], points)[0], len(labels)),
            has_box=None if self.things is None else labels < self.things,
            loss_weights=self.weights,
        )

    def loss_labels(
        self, outputs: Sets, matches: Mapping[str, _Matches], batch: _Batch
    ) -> dict[str, dict[str, Tensor]]:
        """Focal loss of all queries: one-hot targets for matched visible instances, zeros for all other queries."""
        logits = torch.stack([output.logits for output in outputs.values()])  # (S, F', N, K)
        target = torch.zeros_like(logits)
        rows, labels = torch.arange(logits.shape[1], device=logits.device), batch.labels[batch.frames]
        for s, name in enumerate(outputs):
            # Unmatched pairs add 0.
            where = (rows[:, None], matches[name].indices, labels)
            target[s].index_put_(where, matches[name].matched.to(target.dtype), accumulate=True)
        return {
            term: dict(
                zip(outputs, (loss(logits, target).sum(dim=(2, 3)) * batch.scale).sum(dim=1), strict=True)
            )
            for term, loss in LABEL_LOSSES.items()
        }

    def loss_boxes(
        self, outputs: Sets, matches: Mapping[str, _Matches], batch: _Batch
    ) -> dict[str, dict[str, Tensor]]:
        """Box losses (L1 and generalized IoU) at matched things, for every set with boxes."""
        weight = batch.scale[:, None]
        if self.things is not None:
            weight = weight * (batch.labels[batch.frames] < self.things)
        tgt_boxes = batch.boxes[batch.frames]
        losses: dict[str, dict[str, Tensor]] = {term: {} for term in BOX_LOSSES}
        for name, output in outputs.items():
            if output.boxes is not None:
                src_boxes, pair_weight = matches[name].src(output.boxes), matches[name].matched * weight
                for term, loss in BOX_LOSSES.items():
                    losses[term][name] = (loss(src_boxes, tgt_boxes) * pair_weight).sum()
        return losses

    def loss_masks(
        self, outputs: Sets, matches: Mapping[str, _Matches], batch: _Batch
    ) -> dict[str, dict[str, Tensor]]:
        """Mask losses (cross-entropy and dice) at matched instances.

        Whole masks are computed and then sampled: there are more candidate points than mask pixels.
        """
        embed = torch.stack([matches[name].src(out.mask_embed) for name, out in outputs.items()], dim=2)
        if embed.numel():  # (F', M, S, C)
            losses = []
            for f, pairs in zip(batch.supervised.tolist(), embed, strict=True):
                logits = batch.src_masks(f, pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
                losses.append(self._frame_mask_losses(f, logits, batch))
            terms = [torch.stack(term, dim=1) for term in zip(*losses, strict=True)]  # (M, F', S) each
        else:
            # No instance: a zero that depends on mask head and mask features.
            # DDP requires a gradient for every parameter.
            zero = embed.sum(dim=-1) + sum(features.sum() for features in batch.mask_features) * 0
            terms = [zero.transpose(0, 1)] * len(MASK_LOSSES)
        weight = torch.stack([(matches[name].matched * batch.scale[:, None]).T for name in outputs], dim=-1)
        return {
            term: dict(zip(outputs, (loss * weight).sum(dim=(0, 1)), strict=True))
            for term, loss in zip(MASK_LOSSES, terms, strict=True)
        }

    def _frame_mask_losses(self, f: int, logits: Tensor, batch: _Batch) -> list[Tensor]:
        """The mask losses, (M, S) each, of (M, S, h, w) mask logits of frame f.

        All sets share the candidate points of an instance, and each set selects its own points among them.
        """
        num_masks, num_sets = logits.shape[:2]
        extent = batch.extent[f]
        with torch.no_grad():
            tgt_masks = batch.tgt_masks(f)
            candidates = self.sampler.candidates(len(tgt_masks), batch.generator(f, "loss points"))
            tgt = sample_points(tgt_masks[:, None], candidates)[:, 0]
            candidates, tgt = _pad_rows(candidates, num_masks), _pad_rows(tgt, num_masks)  # (M, R, 2), (M, R)
            chosen = self.sampler.choose(sample_points(logits, candidates, extent.expand(num_masks, -1)))
            tgt = tgt[:, None].expand(-1, num_sets, -1).gather(2, chosen)  # (M, S, P)
            coordinates = chosen[..., None].expand(-1, -1, -1, 2)
            points = candidates[:, None].expand(-1, num_sets, -1, -1).gather(2, coordinates).flatten(0, 1)
        masks = logits.flatten(0, 1)[:, None]
        src = sample_points(masks, points, extent.expand(len(masks), -1)).view(chosen.shape)
        return [loss(src, tgt) for loss in MASK_LOSSES.values()]


def _join_time_steps(predictions: Sequence[FramePredictions]) -> dict[str, LayerPredictions]:
    """Float32 predictions of all F frames by set name: the layers in order, then the local queries."""
    names = [*(f"_{i}" for i in range(len(predictions[0].layers) - 1)), FINAL, LOCAL]
    sets = zip(*((*step.layers, step.local) for step in predictions), strict=True)
    return {
        name: _apply(lambda *values: torch.cat(values).float(), *steps)
        for name, steps in zip(names, sets, strict=True)
    }


def _apply(function: Callable[..., Tensor], *steps: LayerPredictions | None) -> LayerPredictions:
    """Applies a function to the logits, the boxes and the mask embeddings of predictions."""
    present = [step for step in steps if step is not None]
    boxes = [step.boxes for step in present if step.boxes is not None]
    return LayerPredictions(
        logits=function(*(step.logits for step in present)),
        boxes=function(*boxes) if boxes else None,
        mask_embed=function(*(step.mask_embed for step in present)),
    )


def _matches(indices: NDArray[np.int64], batch: _Batch) -> _Matches:
    """Moves (F, M) query indices, -1 for none, to the device, restricted to the supervised frames."""
    device, visible = batch.scale.device, batch.visible
    clips = len(batch.clips)
    seen = (
        visible.reshape(len(visible) // clips, clips, visible.shape[1]).cumsum(axis=0).reshape(visible.shape)
        > 0
    )
    masks = (visible & (indices >= 0), seen & ~visible & (indices >= 0))
    matched, hidden = (_send(mask[batch.supervised].astype(np.float32), device) for mask in masks)
    return _Matches(_send(indices[batch.supervised].clip(min=0), device), matched, hidden)


def _send(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """Copies an array to the device without a synchronisation."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    """Appends zero rows: (m, ...) to (count, ...)."""
    return torch.cat((rows, rows.new_zeros(count - len(rows), *rows.shape[1:])))
