"""The training objective, Eq. (4): L = sum_t (l_cls L_cls + l_ce L_ce + l_dice L_dice), and the box terms.

Each instance is matched once, on the first frame where it is visible, by the final layer; that assignment serves all
layers and all later frames.  Reduced supervision leaves some early frames out of the sum.  The local queries, which
have no identity, are matched anew on every supervised frame.

All layers, frames and clips are worked on together.  Letters of this file: F = T * B frames, time-major (t * B + b);
S sets of predictions of a frame, the layers first and the local queries last; M instances of a clip, padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..randomness import keyed_generator
from ..structures import Clip, FrameFeatures, FramePredictions, LayerPredictions, Tracks
from .layers import mask_logits
from .losses import PointSampler, giou_loss, l1_box_loss, sample_points, sigmoid_focal_loss
from .mask_losses import mask_losses, pad_rows
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
class _Truth:
    """The truth of all frames.

    Attributes:
        labels: (F, M) int64.
        boxes: (F, M, 4).
        visible: (F, M) bool on the host; False at padding.
        supervised: (F,) bool on the host.
    """

    labels: Tensor
    boxes: Tensor
    visible: NDArray[np.bool_]
    supervised: NDArray[np.bool_]


class Criterion(nn.Module):
    """The losses of a batch of clips.

    Args:
        matcher: costs.
        sampler: points of the mask losses.
        supervision: which frames have a loss.
        weights: of the terms `cls`, `mask`, `dice`, `box`, `giou`; all five must be there.
        things: the first so many labels are things; the others, stuff, have no box, neither as a cost nor as a
            loss. None: all are things.
    """

    def __init__(
        self,
        matcher: Matcher,
        sampler: PointSampler,
        supervision: ReducedSupervision | FullSupervision,
        weights: Mapping[str, float] | None = None,
        things: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = dict(WEIGHTS if weights is None else weights)
        if set(self.weights) != set(WEIGHTS):
            raise ValueError(f"weights: expected {sorted(WEIGHTS)}, got {sorted(self.weights)}")
        self.matcher, self.sampler, self.supervision = matcher, sampler, supervision
        self.things = things

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
        with torch.autocast(predictions[0].logits.device.type, enabled=False):
            # as they are: copies would lie beside all that a clip keeps for the way back
            maps = [one for step in features for one in step.mask_features.float().unbind()]
            extent = torch.cat([step.extent for step in features])
            truth = self._truth(clips, len(features))
            sets = [_join([_sets(p)[i] for p in predictions]) for i in range(len(_sets(predictions[0])))]
            slots = self._match(clips, truth, (sets[-2], sets[-1]), maps, extent)
            per_set = self._losses(clips, truth, sets, slots, maps, extent)
        names = [f"_{i}" for i in range(len(sets) - 2)] + ["", "_local"]
        return {
            f"loss_{term}{name}": self.weights[term] * value
            for term, values in per_set.items()
            for name, value in zip(names[-len(values) :], values, strict=True)
        }

    def _truth(self, clips: Sequence[Clip], length: int) -> _Truth:
        """Pads and stacks the clips' targets, and draws which frames are supervised."""
        targets = [clip.targets for clip in clips if clip.targets is not None]
        labels = pad_sequence([t.labels for t in targets], batch_first=True)
        boxes = pad_sequence([t.boxes for t in targets], batch_first=True)
        visible = pad_sequence([t.visible.cpu() for t in targets], batch_first=True)
        kept = [self.supervision(length, keyed_generator(*clip.key, "supervision")) for clip in clips]
        return _Truth(
            labels=labels.repeat(length, 1),
            boxes=boxes.permute(2, 0, 1, 3).flatten(0, 1),
            visible=visible.permute(2, 0, 1).flatten(0, 1).numpy(),
            supervised=np.array(kept).T.flatten(),
        )

    @torch.no_grad()
    def _match(
        self,
        clips: Sequence[Clip],
        truth: _Truth,
        sets: tuple[LayerPredictions, LayerPredictions],
        maps: Sequence[Tensor],
        extent: Tensor,
    ) -> NDArray[np.int64]:
        """Slots of all instances by the final layer and by the local queries: (2, F, M), -1 for none.

        The local queries are matched on supervised frames only.
        """
        batch = len(clips)
        asked = _asked(truth, batch)
        costs = (
            self._costs(clips, truth, sets, asked, maps, extent).cpu().numpy()
        )  # the only wait for the device
        tracked = np.zeros((len(maps), *costs.shape[1:]), dtype=costs.dtype)
        tracked[asked[0]], local = (
            costs[: len(asked[0])],
            dict(zip(asked[1], costs[len(asked[0]) :], strict=True)),
        )
        tracks = [
            self.track(tracked[b::batch], truth.visible[b::batch], len(clip.targets or ()))
            for b, clip in enumerate(clips)
        ]
        slots = np.full((2, *truth.visible.shape), -1, dtype=np.int64)
        for f, visible in enumerate(truth.visible):
            owned = tracks[f % batch].slots.numpy()
            slots[0, f, : len(owned)] = owned
            if f in local:
                (seen,) = visible.nonzero()
                rows, columns = assign(local[f][:, seen])
                slots[1, f, seen[columns]] = rows
        return slots

    def _costs(
        self,
        clips: Sequence[Clip],
        truth: _Truth,
        sets: tuple[LayerPredictions, LayerPredictions],
        asked: tuple[NDArray[np.int64], NDArray[np.int64]],
        maps: Sequence[Tensor],
        extent: Tensor,
    ) -> Tensor:
        """(A, N, M) costs of the A frames that are asked of each set, those of the first set first."""
        costs = []
        for one, frames in zip(sets, asked, strict=True):
            # One frame at a time: what lies between masks and costs is many times as large as either, and would be
            # added to all that a clip keeps for the way back just when that is at its most.
            costs += [self._costs_of_frame(clips, truth, one, int(f), maps, extent) for f in frames]
        if not costs:
            return extent.new_zeros(0, sets[0].logits.shape[1], truth.labels.shape[1])
        return torch.stack(costs)

    def _costs_of_frame(
        self,
        clips: Sequence[Clip],
        truth: _Truth,
        one: LayerPredictions,
        f: int,
        maps: Sequence[Tensor],
        extent: Tensor,
    ) -> Tensor:
        """(N, M) costs of frame f of one set."""
        t, clip = f // len(clips), clips[f % len(clips)]
        assert clip.targets is not None
        generator = keyed_generator(*clip.key, "cost points", t, device=extent.device)
        points = torch.rand(1, self.matcher.num_points, 2, generator=generator, device=extent.device)
        true_masks = sample_points(clip.targets.masks[None, :, t].float(), points)[0]
        masks = mask_logits(one.mask_embed[f : f + 1], maps[f][None], extent[f : f + 1])
        labels = truth.labels[f]
        return self.matcher.cost(
            one.logits[f],
            _boxes(one)[f],
            sample_points(masks, points, extent[f : f + 1])[0],
            labels,
            truth.boxes[f],
            pad_rows(true_masks, len(labels)),
            None if self.things is None else labels < self.things,
        )

    @staticmethod
    def track(costs: NDArray[np.float32], visible: NDArray[np.bool_], count: int) -> Tracks:
        """Gives each instance of a clip one slot, at the first frame where it is visible.

        Args:
            costs: (T, N, M) on every frame; read only where an instance is new.
            visible: (T, M).
            count: instances, the first of the M.
        """
        slots = np.full(count, -1, dtype=np.int64)
        born = np.where(visible.any(axis=0), visible.argmax(axis=0), -1)[:count]
        for t, cost in enumerate(costs):
            (new,) = (born == t).nonzero()
            taken = np.zeros(len(cost), dtype=bool)
            taken[slots[slots >= 0]] = True
            rows, columns = assign(cost[:, new], taken)
            slots[new[columns]] = rows
        return Tracks(torch.from_numpy(slots))

    def _losses(
        self,
        clips: Sequence[Clip],
        truth: _Truth,
        sets: Sequence[LayerPredictions],
        slots: NDArray[np.int64],
        maps: Sequence[Tensor],
        extent: Tensor,
    ) -> dict[str, Tensor]:
        """Every term of every set, (S,) each; of the last sets only, for boxes."""
        device = extent.device
        (kept,) = truth.supervised.nonzero()
        frames = _send(kept, device)
        # One assignment for all layers, another for the local queries: (S, F', M).  What picks rows is worked out on
        # the host, so that nobody waits for the device.
        given = slots[[0] * (len(sets) - 1) + [1]][:, kept]
        matched = truth.visible[kept] & (given >= 0)
        s, f, m = (_send(index, device) for index in matched.nonzero())
        owned = _send(given.clip(min=0), device)
        share = 1 / self._counts(truth, len(clips), device)[frames]  # (F',)
        pair = _send(matched, device) * share[:, None]  # (S, F', M) weight of a pair
        labels, boxes = truth.labels[frames], truth.boxes[frames]

        logits = torch.stack([one.logits.index_select(0, frames) for one in sets])
        wanted = torch.zeros_like(logits)
        wanted[s, f, owned[s, f, m], labels[f, m]] = 1.0
        terms = {"cls": (sigmoid_focal_loss(logits, wanted).sum(dim=(2, 3)) * share).sum(dim=1)}

        embed = torch.stack(
            [_at(one.mask_embed.index_select(0, frames), owned[i]) for i, one in enumerate(sets)]
        )
        mask, dice = mask_losses(
            self.sampler, clips, kept, embed, [maps[int(f)] for f in kept], extent[frames]
        )
        terms["mask"], terms["dice"] = (mask * pair).sum(dim=(1, 2)), (dice * pair).sum(dim=(1, 2))

        boxed = [i for i, one in enumerate(sets) if one.boxes is not None]  # the last ones
        weight = pair[-len(boxed) :]
        if self.things is not None:
            weight = weight * (labels < self.things)
        predicted = torch.stack([_at(_boxes(sets[i]).index_select(0, frames), owned[i]) for i in boxed])
        true_boxes = boxes.expand_as(predicted)
        terms["box"] = (l1_box_loss(predicted, true_boxes) * weight).sum(dim=(1, 2))
        terms["giou"] = (giou_loss(predicted, true_boxes) * weight).sum(dim=(1, 2))
        return terms

    def _counts(self, truth: _Truth, batch: int, device: torch.device) -> Tensor:
        """(F,) visible instances of the clips that supervise a time step; the mean over processes, at least 1."""
        visible = _send((truth.visible.sum(axis=1) * truth.supervised).astype(np.float32), device)
        counts = visible.view(-1, batch).sum(dim=1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            counts = counts / dist.get_world_size()
        return counts.clamp(min=1).repeat_interleave(batch)


def _sets(predictions: FramePredictions) -> tuple[LayerPredictions, ...]:
    """The sets of one frame: all layers, then the local queries."""
    assert predictions.local is not None
    return (*predictions.layers, predictions.local)


def _join(steps: Sequence[LayerPredictions]) -> LayerPredictions:
    """One set of all time steps as one of F frames."""
    boxes = None if steps[0].boxes is None else torch.cat([_boxes(one) for one in steps]).float()
    return LayerPredictions(
        torch.cat([one.logits for one in steps]).float(),
        boxes,
        torch.cat([one.mask_embed for one in steps]).float(),
    )


def _asked(truth: _Truth, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames whose costs are read: the final layer's where an instance is new, the local queries' where a loss is."""
    frames, count = truth.visible.shape
    visible = truth.visible.reshape(frames // batch, batch, count)
    new = visible & (visible.cumsum(axis=0) == 1)
    return new.any(axis=-1).flatten().nonzero()[0], (truth.supervised & truth.visible.any(axis=1)).nonzero()[
        0
    ]


def _boxes(one: LayerPredictions) -> Tensor:
    assert one.boxes is not None
    return one.boxes


def _send(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; nobody waits until it is there."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _at(values: Tensor, slots: Tensor) -> Tensor:
    """(F, N, C) rows of (F, M) slots: (F, M, C)."""
    return values.gather(1, slots[..., None].expand(-1, -1, values.shape[-1]))
