"""Variants that are not in the paper.

- `ImageTracker`: frames are segmented one by one and linked afterwards, for image-only weights.
- `OlderSlotsFirst`: of slots with nearly the same mask, the slot that was reported most often is reported.
- `FromProposals`: the first frame's slots have the encoder's boxes, for training from scratch.
- `IdentityStartAligner`: an aligner with zero residual branches, for video training without pre-training.
- `HiddenMasksCriterion`: the target mask of a hidden instance is empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..boxes import box_iou, cxcywh_to_xyxy
from ..structures import FramePredictions, Positions, Proposals, Queries
from .aligner import AlignerLayer, L2GAligner
from .criterion import Criterion, Sets
from .layers import pairwise_iou
from .matcher import assign
from .positions import EmbedBoxes
from .tracker import FromLocal, Tracker

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

#: Logit of the scores and masks of a slot whose object is absent.
ABSENT = -20.0

#: Growth per frame of the distance at which a lost object is looked for, in sizes of the object.
SPREAD = 0.25


@dataclass(frozen=True)
class RememberedQueries(Queries):
    """The slots of `ImageTracker`: what is needed to find an object again that was lost for some frames.

    Attributes:
        masks: (B, N, h, w) bool, the last mask of each slot.
        motion: (B, N, 2) displacement of the box's centre per frame, as a fraction of the frame; smoothed.
        lost: (B, N) int64 frames since the slot's last detection; 0 on the frame of the detection.
        taken: (B, N) bool, whether the slot has belonged to an object.
    """

    masks: Tensor
    motion: Tensor
    lost: Tensor
    taken: Tensor

    @classmethod
    def empty(cls, predictions: FramePredictions) -> RememberedQueries:
        """Free slots for the predictions of a first frame."""
        queries, masks = predictions.queries, predictions.masks
        lost = torch.zeros(masks.shape[:2], dtype=torch.int64, device=masks.device)
        return cls(
            torch.zeros_like(queries.embed),
            torch.zeros_like(queries.boxes),
            torch.zeros_like(masks, dtype=torch.bool),
            torch.zeros_like(queries.boxes[..., :2]),
            lost,
            lost > 0,
        )


class ImageTracker(nn.Module):
    """Decodes the local queries of every frame, then links them to slots that remember lost objects.

    It makes image-only weights, such as a released MaskDINO, usable on videos: identities are matched, not learned.
    Queries of a good image segmenter are similar wherever they show the same object (MinVIS; Huang, Yu and Anandkumar,
    NeurIPS 2022).  Objects that look alike are distinguished by place.  The affinity of a slot and a detection in
    [0, 1] is

        appearance * cosine of the queries + (1 - appearance) * place,

    where place is the mean of the IoU of the masks and the IoU of the detection's box with the slot's moved box; for an
    object that was lost, it is a Gaussian of the distance to the slot's moved box, which widens with time, times the
    square root of the ratios of width and of height.  An object without a query is linked by place alone.  The mask of
    a detection is the average of the masks that overlap it by `duplicate`, weighted by score; the query of a slot is
    the moving average of the queries of its detections.  A frame is linked by the Hungarian algorithm:

    1. a detection that overlaps a more confident one is dropped: two slots on one object exchange their masks;
    2. the slots of objects, seen on the previous frame or lost, take the detections with the largest summed affinity;
    3. the remaining confident detections are new objects.  They take slots that never had an object, then those that
       lost their object the longest ago;
    4. the remaining detections are linked to slots without an object.

    The slot of a lost object has an empty mask and keeps its query, box and mask.  Memory is constant: N slots.

    Args:
        memory: frames for which a lost object can be found again.  0 links consecutive frames only.
        appearance: weight of the queries' similarity in the affinity; the rest is the weight of the place.
        least: affinity below which a slot and a detection are never linked.
        threshold: class score from which a detection is confident.
        duplicate: IoU of masks above which two detections show one object: their masks are averaged, and the less
            confident one is dropped.
        smoothing: weight of the earlier queries of a slot in the moving average; 0 keeps the last query.

    Attributes:
        aligner: always None.
        caveat: warning that is printed to users.
    """

    aligner: None = None
    caveat = "model.tracker=bypass: identities are matched from frame to frame, not learned"

    def __init__(
        self,
        memory: int = 30,
        appearance: float = 0.6,
        least: float = 0.3,
        threshold: float = 0.15,
        duplicate: float = 0.5,
        smoothing: float = 0.5,
    ) -> None:
        super().__init__()
        self.memory, self.appearance, self.least = memory, appearance, least
        self.threshold, self.duplicate, self.smoothing = threshold, duplicate, smoothing

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Queries, Positions]:
        """The local queries at the boxes of their masks, as MaskDINO does on one image; `past` is ignored."""
        del past
        return Queries(local.embed, local.boxes), Positions(embed_boxes(local.boxes), local.boxes)

    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the slots, with an empty mask and a score near 0 in slots without one."""
        slots = past if isinstance(past, RememberedQueries) else RememberedQueries.empty(predictions)
        predictions = dataclasses.replace(predictions, masks=self._average_masks(predictions))
        with torch.no_grad():
            order, new = self._assign(slots, predictions)
        missing = order < 0
        ordered = predictions.in_order(order.clamp(min=0))
        return dataclasses.replace(
            ordered,
            logits=ordered.logits.masked_fill(missing[..., None], ABSENT),
            masks=ordered.masks.masked_fill(missing[..., None, None], ABSENT),
            queries=_remember(slots, ordered, missing, new, self.smoothing),
        )

    def _average_masks(self, predictions: FramePredictions) -> Tensor:
        """(B, N, h, w) logits: each mask averaged with those that show the same object, weighted by score."""
        masks = predictions.masks > 0
        weights = _scores(predictions)[:, None] * (pairwise_iou(masks, masks) > self.duplicate)
        total = weights.sum(-1)[..., None, None]
        averages = (weights @ predictions.masks.flatten(2)).view_as(masks) / total.clamp(min=1e-6)
        return torch.where(total > 0, averages, predictions.masks)

    def _assign(self, slots: RememberedQueries, predictions: FramePredictions) -> tuple[Tensor, Tensor]:
        """Links the detections of a frame to slots.

        Returns:
            (B, N) int64, the detection of each slot, -1 for none; (B, N) bool, the slots that are given to new objects.
        """
        masks = predictions.masks > 0
        scores = _scores(predictions)
        tensors = (
            self.affinity(slots, predictions),
            pairwise_iou(masks, masks),
            scores,
            slots.taken,
            slots.lost,
        )
        host = [x.cpu().numpy() for x in tensors]
        linked = [self._link_clip(*clip) for clip in zip(*host, strict=True)]
        order, new = (np.stack(column) for column in zip(*linked, strict=True))
        device = scores.device
        return torch.from_numpy(order).to(device), torch.from_numpy(new).to(device)

    def _link_clip(
        self, affinity: Floats, overlap: Floats, scores: Floats, taken: Bools, lost: Ints
    ) -> tuple[Ints, Bools]:
        """`_assign` of one clip.

        Args:
            affinity: (N, N) of slots and detections.
            overlap: (N, N) IoU of the detections' masks.
            scores: (N,) of the detections, 0 for an empty mask.
            taken: (N,) whether a slot belongs to an object.
            lost: (N,) frames since its last detection.
        """
        order, confident = np.full(len(scores), -1), scores >= self.threshold
        free = distinct(scores, overlap, self.duplicate)  # detections

        def link(rows: Bools, columns: Bools, least: float) -> None:
            for slot, detection in best_pairs(affinity, rows, columns, least):
                order[slot], free[detection] = detection, False

        link(taken & (lost <= self.memory), free & (scores > 0), self.least)
        newcomers = np.flatnonzero(free & confident)
        newcomers = newcomers[np.argsort(-scores[newcomers], kind="stable")]
        by_value = np.argsort(np.where(taken, np.iinfo(np.int64).max - lost, 0), kind="stable")
        places = by_value[order[by_value] < 0][: len(newcomers)]
        order[places], free[newcomers[: len(places)]] = newcomers[: len(places)], False
        new = np.isin(np.arange(len(order)), places)
        link(~taken & ~new, free, -1.0)
        return order, new

    def affinity(self, slots: RememberedQueries, predictions: FramePredictions) -> Tensor:
        """(B, N, N) affinities in [0, 1] of slots and detections."""
        queries, extent = predictions.queries, predictions.extent
        similarity = F.normalize(slots.embed.float(), dim=-1) @ F.normalize(queries.embed.float(), dim=-1).mT
        steps = slots.lost[..., None] + 1.0
        moved = torch.cat((slots.boxes[..., :2] + steps * slots.motion, slots.boxes[..., 2:]), dim=-1)
        overlap = box_iou(cxcywh_to_xyxy(moved)[:, :, None], cxcywh_to_xyxy(queries.boxes.float())[:, None])
        iou = pairwise_iou(slots.masks, predictions.masks > 0)
        distance = torch.cdist(
            moved[..., :2] * extent[:, None], queries.boxes[..., :2].float() * extent[:, None]
        )
        size = (moved[..., 2:] * extent[:, None]).prod(-1).clamp(min=1).sqrt()
        width = size * (0.5 + SPREAD * slots.lost)
        sizes = moved[:, :, None, 2:], queries.boxes[:, None, :, 2:].float()
        ratios = torch.minimum(*sizes) / torch.maximum(*sizes).clamp(min=1e-6)
        near = torch.exp(-0.5 * (distance / width[..., None]) ** 2) * ratios.prod(-1).sqrt()
        place = torch.where(slots.lost[..., None] == 0, (iou + overlap) / 2, near)
        weight = self.appearance * slots.embed.any(-1, keepdim=True) * queries.embed.any(-1)[:, None]
        return weight * similarity.clamp(min=0) + (1 - weight) * place

    def start(self, boxes: Tensor, masks: Tensor, local: Proposals) -> RememberedQueries:
        """The slots before the first frame of a stream whose objects are given; they are found by place alone.

        Args:
            boxes: (1, M, 4), of the objects.
            masks: (1, M, h, w) bool, the masks of the objects on the first frame.
            local: the local queries of the first frame.
        """
        (_, count, *size), total = masks.shape, local.embed.shape[1]
        slots = torch.arange(total, device=masks.device)[None]
        places = torch.zeros_like(local.boxes)
        places[:, :count] = boxes
        remembered = masks.new_zeros(1, total, *size)
        remembered[:, :count] = masks
        return RememberedQueries(
            torch.zeros_like(local.embed),
            places,
            remembered,
            torch.zeros_like(places[..., :2]),
            torch.zeros_like(slots),
            slots < count,
        )


def _scores(predictions: FramePredictions) -> Tensor:
    """(B, N) best class score of each detection, 0 for an empty mask."""
    empty = ~(predictions.masks > 0).flatten(2).any(-1)
    return predictions.logits.sigmoid().amax(-1).masked_fill(empty, 0.0)


@torch.no_grad()
def _remember(
    slots: RememberedQueries, ordered: FramePredictions, missing: Tensor, new: Tensor, smoothing: float
) -> RememberedQueries:
    """The slots after a frame.

    Args:
        slots: the slots before it.
        ordered: the detections in the order of the slots.
        missing: (B, N) bool, slots without a detection, which keep their content.
        new: (B, N) bool, slots that are given to new objects.
        smoothing: weight of the earlier queries.
    """
    found, current = ~missing[..., None], ordered.queries
    step = (current.boxes - slots.boxes)[..., :2] / (slots.lost[..., None] + 1.0)
    known = (slots.taken & ~new)[..., None]
    motion = torch.where(known, (slots.motion + step) / 2, 0.0)
    earlier, latest = F.normalize(slots.embed, dim=-1), F.normalize(current.embed, dim=-1)
    average = smoothing * earlier + (1 - smoothing) * latest
    embed = torch.where(known & slots.embed.any(-1, keepdim=True), average, current.embed)
    return RememberedQueries(
        embed=torch.where(found, embed, slots.embed),
        boxes=torch.where(found, current.boxes, slots.boxes),
        masks=torch.where(found[..., None], ordered.masks > 0, slots.masks),
        motion=torch.where(found, motion, slots.motion),
        lost=torch.where(missing, slots.lost + 1, 0),
        taken=slots.taken | new,
    )


def distinct(scores: Floats, overlap: Floats, limit: float) -> Bools:
    """Detections that no more confident one overlaps: greedy non-maximum suppression.

    Args:
        scores: (N,).
        overlap: (N, N) IoU of masks.
        limit: IoU above which the less confident detection is dropped.

    Returns:
        (N,) bool.
    """
    kept = np.ones(len(scores), dtype=bool)
    order = np.argsort(-scores, kind="stable")
    for rank, row in enumerate(order):
        if kept[row]:
            rest = order[rank + 1 :]
            kept[rest] &= overlap[row, rest] <= limit
    return kept


def best_pairs(
    affinity: NDArray[np.floating[Any]], rows: Bools, columns: Bools, least: float
) -> list[tuple[int, int]]:
    """The one-to-one pairs with the largest summed affinity.

    Args:
        affinity: (N, N) in [0, 1].
        rows: (N,) bool, rows that take part.
        columns: (N,) bool, columns that take part.
        least: pairs below this affinity are left out, before the sum is maximised.
    """
    i, j = np.flatnonzero(rows), np.flatnonzero(columns)
    values = affinity[np.ix_(i, j)]
    pairs = zip(*assign(np.where(values < least, 0.0, -values)), strict=True)
    return [(int(i[r]), int(j[c])) for r, c in pairs if values[r, c] >= least]


@dataclass(frozen=True)
class AgedQueries(Queries):
    """The slots of `OlderSlotsFirst`.

    Attributes:
        age: (B, N) int64 number of frames on which the slot was reported.
    """

    age: Tensor


class OlderSlotsFirst(Tracker):
    """The paper's propagation; of slots with nearly the same mask, only the oldest is reported.

    Two slots can follow the same object.  Both are then reported, and the object seems to change its identity whenever
    the other mask fits better.  The scores of a slot become nearly 0 on a frame if its mask overlaps that of a slot
    that has been reported on more frames or, for equal ages, has the higher score.  The propagated queries and the
    training do not change.

    Args:
        *args: as for `Tracker`.
        overlap: IoU of two masks from which they show the same object.
        threshold: class score from which a slot is reported.
        **kwargs: as for `Tracker`.
    """

    def __init__(self, *args: Any, overlap: float = 0.7, threshold: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.overlap, self.threshold = overlap, threshold

    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions, with scores near 0 for slots that repeat an older slot; unchanged in training."""
        if self.training:
            return predictions
        queries, masks = predictions.queries, predictions.masks > 0
        scores = predictions.logits.sigmoid().amax(-1)
        confident = (scores >= self.threshold) & masks.flatten(2).any(-1)
        age = past.age if isinstance(past, AgedQueries) else torch.zeros_like(confident, dtype=torch.int64)
        # (B, i, j): slot j comes before slot i.
        older = age[:, None] > age[..., None]
        surer = (age[:, None] == age[..., None]) & (scores[:, None] > scores[..., None])
        same = pairwise_iou(masks, masks) >= self.overlap
        repeated = ((older | surer) & same & confident[:, None]).any(-1)
        return dataclasses.replace(
            predictions,
            logits=predictions.logits.masked_fill(repeated[..., None], ABSENT),
            queries=AgedQueries(queries.embed, queries.boxes, age + (confident & ~repeated)),
        )


class FromProposals(FromLocal):
    """First frame: the local queries become the global queries, at the encoder's boxes instead of their masks' boxes.

    Early in training from scratch, the masks of all local queries cover all similar objects.  Mask2Box then gives
    all slots nearly the same box.  Encoder boxes differ between tokens.
    """

    def forward(self, local: Proposals) -> Queries:
        """Initial slots, (B, N, C), with the encoder's boxes."""
        boxes = local.predictions.boxes
        assert boxes is not None
        return Queries(local.embed, boxes.detach())


class IdentityStartAligner(L2GAligner):
    """An L2G-aligner whose residual branches are initialised to zero.

    Initially, only its norms act: this equals propagation without an aligner, up to normalisation.  Random weights, and
    weights pre-trained with learned queries (section 4.2), start with a higher loss.

    Args:
        *args: as for `L2GAligner`.
        **kwargs: as for `L2GAligner`.
    """

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        for layer in self.layers:
            assert isinstance(layer, AlignerLayer)
            for last in (
                layer.self_attn.attention.out_proj,
                layer.cross_attn.attention.out_proj,
                layer.ffn.linear2,
            ):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)


class HiddenMasksCriterion(Criterion):
    """The paper's losses; also, the target mask of a hidden instance is empty.

    In the paper, the mask of a slot has no loss while its object is hidden.  The mask then moves to another object, and
    with it the position of the slot, which is the box of its last mask (Eq. 2).  The box of an empty mask is the last
    box.
    """

    def loss_masks(
        self, outputs: Sets, matches: Mapping[str, Any], batch: Any
    ) -> dict[str, dict[str, Tensor]]:
        """Mask losses at matched instances and at hidden ones; local queries are not matched to hidden ones."""
        shown = {name: dataclasses.replace(m, matched=m.matched + m.hidden) for name, m in matches.items()}
        return super().loss_masks(outputs, shown, batch)
