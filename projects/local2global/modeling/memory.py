"""Object memory: links the detections of a frame to slots and re-identifies lost objects.

`variants.ImageTracker` and `variants.RememberingTracker` use it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..boxes import box_iou, cxcywh_to_xyxy, mask_iou
from ..errors import check_range
from ..structures import FramePredictions, Proposals, Queries
from .matcher import assign

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

#: Logit of the scores and masks of a slot whose object is absent.
ABSENT = -20.0

#: Growth of the search radius of a lost object per frame, in object sizes.
SPREAD = 0.25

#: Bins of a colour histogram for each of red, green and blue.
BINS = 6

#: Smallest positive score: detections with an empty mask score 0.  Also avoids division by 0.
TINY = 1e-9

#: IoU of boxes above which a local query is at the location of an object in view, or of a more confident local query.
SAME_PLACE = 0.7


@dataclass(frozen=True)
class RememberedQueries(Queries):
    """Slots with the state needed to re-identify lost objects.

    Attributes:
        row: (B, N) int64, the detection of each slot on the previous frame; a permutation.
        query: (B, N, C) moving average of the object's queries; zeros if unknown.
        colours: (B, N, K) moving average of the square roots of its colour histograms; zeros if unknown.
        places: (B, N, 4) boxes of its last masks.
        masks: (B, N, h, w) bool, its last masks.
        motion: (B, N, 2) displacement of the box's centre per frame, as a fraction of the frame; smoothed.
        lost: (B, N) int64 frames since the object's last detection; 0 on the frame of the detection.
        taken: (B, N) bool, whether the slot has ever been assigned to an object.
    """

    row: Tensor
    query: Tensor
    colours: Tensor
    places: Tensor
    masks: Tensor
    motion: Tensor
    lost: Tensor
    taken: Tensor

    @classmethod
    def empty(cls, queries: Queries, size: tuple[int, int]) -> RememberedQueries:
        """Slots without objects.

        Args:
            queries: queries and boxes that are propagated.
            size: height and width of the masks.
        """
        embed, boxes = queries.embed, queries.boxes
        row = torch.arange(boxes.shape[1], device=boxes.device).expand(boxes.shape[:2])
        lost = torch.zeros_like(row)
        return cls(
            embed,
            boxes,
            row=row,
            query=torch.zeros_like(embed),
            colours=boxes.new_zeros(*boxes.shape[:2], BINS**3),
            places=torch.zeros_like(boxes),
            masks=boxes.new_zeros(*boxes.shape[:2], *size, dtype=torch.bool),
            motion=torch.zeros_like(boxes[..., :2]),
            lost=lost,
            taken=lost > 0,
        )

    @property
    def seen(self) -> Tensor:
        """(B, N) bool, the slots with an object that was detected on the last frame."""
        return self.taken & (self.lost == 0)

    def with_objects(self, boxes: Tensor, masks: Tensor) -> RememberedQueries:
        """The slots after a frame on which slots 0 to M - 1 show given objects.

        Args:
            boxes: (B, M, 4) of the objects.
            masks: (B, M, h, w) bool.
        """
        count = masks.shape[1]
        places, shown, taken, lost = (x.clone() for x in (self.places, self.masks, self.taken, self.lost))
        places[:, :count], shown[:, :count], taken[:, :count], lost[:, :count] = boxes, masks, True, 0
        return dataclasses.replace(self, places=places, masks=shown, taken=taken, lost=lost)


@dataclass(frozen=True)
class ObjectMemory:
    """Links the predictions of a frame to slots.

    The affinity of a slot and a detection in [0, 1] is

        appearance * (colours * C + (1 - colours) * Q) + (1 - appearance) * place,

    where Q is the cosine similarity of the queries and C that of the square roots of the colour histograms
    (Bhattacharyya coefficient); if only one of them is known, it has the full weight.  For an object seen on the
    previous frame, `place` is the mean of the IoU of the masks and the IoU of the boxes, the slot's box being
    extrapolated by its motion.  For a lost object it is a Gaussian of the distance to the extrapolated box, which
    widens with time, times the geometric mean of the ratios of width and height.  Without query and colours, only
    `place` counts.  Query and histogram of a slot are moving averages over its high-score detections.  Assignment is
    Hungarian, in stages as in ByteTrack (Zhang et al., ECCV 2022):

    1. a detection that overlaps one with a higher score is dropped: otherwise two slots on one object could swap;
    2. the slots of objects, seen on the previous frame or lost, take high-score detections with the largest summed
       affinity;
    3. unmatched slots of objects seen on the previous frame take low-score detections whose mask overlaps the last one
       by `duplicate`; otherwise the object is lost.  Lost objects are not matched to low-score detections, because some
       false detection usually resembles them;
    4. the remaining high-score detections are new objects.  They take unused slots first, then the slots of the objects
       lost longest;
    5. the remaining detections are linked to slots without an object.

    The slot of a lost object keeps its state.  The size of the memory does not depend on the video's length.

    Attributes:
        memory: frames for which a lost object can be re-identified.  0 links consecutive frames only.
        appearance: weight of query and colours in the affinity; the rest is the weight of `place`.
        colours: weight of the colours in the appearance; the rest is the weight of the query.
        least: minimum affinity of a match.
        threshold: minimum class score of a high-score detection.
        duplicate: IoU of masks above which two detections show one object, and the one with the lower score is dropped.
        smoothing: weight of the earlier frames in the moving averages; 0 keeps the last query and histogram.

    Raises:
        UserError: for a negative memory, or another value outside [0, 1].
    """

    memory: int = 30
    appearance: float = 0.8
    colours: float = 0.8
    least: float = 0.4
    threshold: float = 0.3
    duplicate: float = 0.5
    smoothing: float = 0.95

    def __post_init__(self) -> None:
        check_range("memory", self.memory, 0)
        for name in ("appearance", "colours", "least", "threshold", "duplicate", "smoothing"):
            check_range(name, getattr(self, name), 0, 1)

    @torch.no_grad()
    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the slots.

        A slot without a detection gets an empty mask, a score near 0 and an unused query.

        Args:
            past: the slots after the previous frame.  None or plain `Queries`: all objects are new.
            predictions: the detections of the frame.
        """
        if not isinstance(past, RememberedQueries):
            height, width = predictions.masks.shape[-2:]
            past = RememberedQueries.empty(predictions.queries, (height, width))
        histograms = colour_histograms(predictions)
        order, missing, new = self._assign(past, predictions, histograms)
        ordered = predictions.in_order(order)
        histograms = histograms.gather(1, order[..., None].expand_as(histograms))
        return dataclasses.replace(
            ordered,
            logits=ordered.logits.masked_fill(missing[..., None], ABSENT),
            masks=ordered.masks.masked_fill(missing[..., None, None], ABSENT),
            queries=self._remember(past, ordered, order, histograms, missing, new),
        )

    def _assign(
        self, slots: RememberedQueries, predictions: FramePredictions, histograms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Links the detections of a frame to slots.

        Returns:
            (B, N) int64, the order of the detections: a permutation; (B, N) bool, the slots whose object has no
            detection; (B, N) bool, the slots assigned to new objects.
        """
        masks = predictions.masks > 0
        scores, kept = scores_of(predictions), mask_iou(slots.masks, masks)
        tensors = (
            self.affinity(slots, predictions, histograms, kept),
            kept,
            mask_iou(masks, masks),
            scores,
            slots.taken,
            slots.lost,
        )
        host = [x.cpu().numpy() for x in tensors]
        linked = [self._link_clip(*clip) for clip in zip(*host, strict=True)]
        order, missing, new = (
            torch.from_numpy(np.stack(column)).to(scores.device) for column in zip(*linked, strict=True)
        )
        return order, missing, new

    def _link_clip(
        self, affinity: Floats, kept: Floats, overlap: Floats, scores: Floats, taken: Bools, lost: Ints
    ) -> tuple[Ints, Bools, Bools]:
        """`_assign` of one clip.

        Args:
            affinity: (N, N) of slots and detections.
            kept: (N, N) IoU of the slots' last masks and the detections' masks.
            overlap: (N, N) IoU of the detections' masks.
            scores: (N,) of the detections, 0 for an empty mask.
            taken: (N,) whether a slot belongs to an object.
            lost: (N,) frames since its last detection.
        """
        order, confident = np.full(len(scores), -1), scores >= max(self.threshold, TINY)
        free = distinct(scores, overlap, self.duplicate)  # detections

        def link(values: Floats, rows: Bools, columns: Bools, least: float) -> None:
            for slot, detection in best_pairs(values, rows & (order < 0), columns & free, least):
                order[slot], free[detection] = detection, False

        seen = taken & (lost == 0)
        link(affinity, taken & (lost <= self.memory), confident, self.least)
        link(kept, seen, scores > 0, self.duplicate)
        newcomers = np.flatnonzero(free & confident)
        newcomers = newcomers[np.argsort(-scores[newcomers], kind="stable")]
        by_value = np.argsort(np.where(taken, np.iinfo(np.int64).max - lost, 0), kind="stable")
        places = by_value[order[by_value] < 0][: len(newcomers)]
        order[places], free[newcomers[: len(places)]] = newcomers[: len(places)], False
        new = np.isin(np.arange(len(order)), places)
        link(affinity, ~taken & ~new, np.ones_like(free), -1.0)
        missing = order < 0
        order[missing] = np.setdiff1d(np.arange(len(order)), order[~missing])
        return order, missing, new

    def affinity(
        self, slots: RememberedQueries, predictions: FramePredictions, histograms: Tensor, kept: Tensor
    ) -> Tensor:
        """(B, N, N) affinities in [0, 1] of slots and detections.

        Args:
            slots: N slots.
            predictions: N detections.
            histograms: (B, N, K) of the detections.
            kept: (B, N, N) IoU of the slots' last masks and the detections' masks.
        """
        queries, extent = predictions.queries, predictions.extent
        steps = slots.lost[..., None] + 1.0
        moved = torch.cat((slots.places[..., :2] + steps * slots.motion, slots.places[..., 2:]), dim=-1)
        overlap = box_iou(cxcywh_to_xyxy(moved)[:, :, None], cxcywh_to_xyxy(queries.boxes.float())[:, None])
        distance = torch.cdist(
            moved[..., :2] * extent[:, None], queries.boxes[..., :2].float() * extent[:, None]
        )
        size = (moved[..., 2:] * extent[:, None]).prod(-1).clamp(min=1).sqrt()
        width = size * (0.5 + SPREAD * slots.lost)
        sizes = moved[:, :, None, 2:], queries.boxes[:, None, :, 2:].float()
        ratios = torch.minimum(*sizes) / torch.maximum(*sizes).clamp(min=1e-6)
        near = torch.exp(-0.5 * (distance / width[..., None]) ** 2) * ratios.prod(-1).sqrt()
        place = torch.where(slots.lost[..., None] == 0, (kept + overlap) / 2, near)

        similarity, total = torch.zeros_like(place), torch.zeros_like(place)
        for weight, one, other in (
            (1 - self.colours, slots.query, queries.embed),
            (self.colours, slots.colours, histograms),
        ):
            known = weight * one.any(-1)[..., None] * other.any(-1)[:, None]
            cosine = F.normalize(one.float(), dim=-1) @ F.normalize(other.float(), dim=-1).mT
            similarity, total = similarity + known * cosine.clamp(min=0), total + known
        appearance = self.appearance * (total > 0)
        return appearance * similarity / total.clamp(min=TINY) + (1 - appearance) * place

    def _remember(
        self,
        slots: RememberedQueries,
        ordered: FramePredictions,
        order: Tensor,
        histograms: Tensor,
        missing: Tensor,
        new: Tensor,
    ) -> RememberedQueries:
        """The slots after a frame.

        Args:
            slots: the slots before it.
            ordered: the detections in the order of the slots.
            order: (B, N) their rows in the frame.
            histograms: (B, N, K) of these detections.
            missing: (B, N) bool, slots without a detection, which keep their content.
            new: (B, N) bool, slots assigned to new objects.
        """
        found, current = ~missing[..., None], ordered.queries
        step = (current.boxes - slots.places)[..., :2] / (slots.lost[..., None] + 1.0)
        known = (slots.taken & ~new)[..., None]
        sure = found & (scores_of(ordered) >= self.threshold)[..., None]

        def average(earlier: Tensor, latest: Tensor) -> Tensor:
            one, other = F.normalize(earlier, dim=-1), F.normalize(latest, dim=-1)
            mean = self.smoothing * one + (1 - self.smoothing) * other
            started = known & earlier.any(-1, keepdim=True)
            return torch.where(started, torch.where(sure, mean, earlier), torch.where(found, latest, earlier))

        return RememberedQueries(
            current.embed,
            current.boxes,
            row=order,
            query=average(slots.query, current.embed),
            places=torch.where(found, current.boxes, slots.places),
            colours=average(slots.colours, histograms),
            masks=torch.where(found[..., None], ordered.masks > 0, slots.masks),
            motion=torch.where(found, torch.where(known, (slots.motion + step) / 2, 0.0), slots.motion),
            lost=torch.where(missing, slots.lost + 1, 0),
            taken=slots.taken | new,
        )


@torch.no_grad()
def restart(slots: Queries, seen: Tensor, local: Proposals) -> Queries:
    """Re-initialises the slots without an object in view with local queries at other locations than those objects.

    A local query is used if its box has an IoU of at most `SAME_PLACE` with the box of every object in view, and of
    every more confident local query that is used.  With more slots than such queries, the last slots do not change.

    Args:
        slots: N slots after the previous frame.
        seen: (B, N) bool, the slots with an object in view.
        local: the local queries of the current frame.
    """
    places = cxcywh_to_xyxy(local.boxes.float())
    alike = box_iou(places[:, :, None], places[:, None])
    near = box_iou(places[:, :, None], cxcywh_to_xyxy(slots.boxes.float())[:, None]) * seen[:, None]
    source = torch.full(seen.shape, -1)
    for clip, (overlap, occupied, busy) in enumerate(
        zip(alike.cpu().numpy(), (near.amax(-1) > SAME_PLACE).cpu().numpy(), seen.cpu(), strict=True)
    ):
        by_confidence = -np.arange(len(overlap), dtype=np.float32)
        new = np.flatnonzero(distinct(by_confidence, overlap, SAME_PLACE) & ~occupied)
        free = torch.nonzero(~busy)[: len(new), 0]
        source[clip, free] = torch.from_numpy(new[: len(free)])
    source = source.to(seen.device)

    def started(values: Tensor, latest: Tensor) -> Tensor:
        index = source.clamp(min=0)[..., None].expand_as(values)
        return torch.where(source[..., None] < 0, values, latest.gather(1, index))

    return Queries(started(slots.embed, local.embed), started(slots.boxes, local.boxes))


def scores_of(predictions: FramePredictions) -> Tensor:
    """(B, N) best class score of each detection, 0 for an empty mask."""
    empty = ~(predictions.masks > 0).flatten(2).any(-1)
    return predictions.logits.sigmoid().amax(-1).masked_fill(empty, 0.0)


@torch.no_grad()
def colour_histograms(predictions: FramePredictions) -> Tensor:
    """Square roots of the colour histogram of each mask: their cosine is the Bhattacharyya coefficient.

    A pixel is split linearly between the neighbouring bins of its colour, so small illumination changes alter a
    histogram little.

    Returns:
        (B, N, `BINS` ** 3) float32 of unit length; zeros for an empty mask, or if the predictions have no colours.
    """
    masks, colours = predictions.masks > 0, predictions.colours
    if colours is None:
        return masks.new_zeros(*masks.shape[:2], BINS**3, dtype=torch.float32)
    position = colours.flatten(2) * (BINS - 1)  # (B, 3, P)
    bins = torch.arange(BINS, device=colours.device)
    red, green, blue = (1 - (position[..., None] - bins).abs()).clamp(min=0).unbind(1)  # (B, P, BINS) each
    cells = torch.einsum("bpi,bpj,bpk->bpijk", red, green, blue).flatten(2)
    return F.normalize((masks.flatten(2).float() @ cells).sqrt(), dim=-1)


def distinct(scores: Floats, overlap: Floats, limit: float) -> Bools:
    """Detections that none with a higher score overlaps: greedy non-maximum suppression.

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
