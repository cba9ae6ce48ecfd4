"""Variants that are not in the paper.

- `ImageTracker`: frames are segmented independently and linked by queries, colours and location, for image-only
  weights; lost objects are re-identified.
- `RememberingTracker`: the paper's propagation; objects that were hidden, or lost by their slot, are re-identified
  after decoding.
- `RestartingTracker`: the same, and slots without an object in view start from local queries.
- `FromProposals`: the first frame's slots have the encoder's boxes, for training from scratch.
- `IdentityStartAligner`: an aligner with zero residual branches, for video training without pre-training.
- `HiddenMasksCriterion`: the target mask of a hidden instance is empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..boxes import mask_iou
from ..structures import FramePredictions, Positions, Proposals, Queries
from .aligner import AlignerLayer, L2GAligner
from .criterion import Criterion, Sets
from .memory import ObjectMemory, RememberedQueries, restart, scores_of
from .positions import EmbedBoxes
from .tracker import FromLocal, Tracker


class ImageTracker(nn.Module):
    """Decodes the local queries of every frame and links them to slots (`ObjectMemory`).

    Makes image-only weights, such as a released MaskDINO, usable on videos; tracking is not learned.  Queries of a good
    image segmenter are similar wherever they show the same object (MinVIS; Huang, Yu and Anandkumar, NeurIPS 2022), and
    so are the colours of the object.  Similar objects are distinguished by location.  The mask
    of a detection is the average of the masks that overlap it by `duplicate`, weighted by score.

    The arguments are the attributes of `ObjectMemory`.

    Attributes:
        aligner: always None.
        caveat: warning that is printed to users.
    """

    aligner: None = None
    caveat = "model.tracker=bypass: identities are matched from frame to frame, not learned"

    def __init__(
        self,
        memory: int = ObjectMemory.memory,
        appearance: float = ObjectMemory.appearance,
        colours: float = ObjectMemory.colours,
        least: float = ObjectMemory.least,
        threshold: float = ObjectMemory.threshold,
        duplicate: float = ObjectMemory.duplicate,
        smoothing: float = ObjectMemory.smoothing,
    ) -> None:
        super().__init__()
        self.objects = ObjectMemory(memory, appearance, colours, least, threshold, duplicate, smoothing)

    def extra_repr(self) -> str:
        """The settings of the memory; a run is resumed only with equal ones."""
        return str(self.objects)

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Queries, Positions]:
        """The local queries at the boxes of their masks, as MaskDINO does on one image; `past` is ignored."""
        del past
        return Queries(local.embed, local.boxes), Positions(embed_boxes(local.boxes), local.boxes)

    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the slots, with an empty mask and a score near 0 in slots without one."""
        masks = predictions.masks > 0
        weights = scores_of(predictions)[:, None] * (mask_iou(masks, masks) > self.objects.duplicate)
        total = weights.sum(-1)[..., None, None]
        averages = (weights @ predictions.masks.flatten(2)).view_as(masks) / total.clamp(min=1e-6)
        averages = torch.where(total > 0, averages, predictions.masks)
        return self.objects.link(past, dataclasses.replace(predictions, masks=averages))

    def start(self, boxes: Tensor, masks: Tensor, local: Proposals) -> RememberedQueries:
        """Initial slots for a first frame with given objects, which are matched by location alone.

        Args:
            boxes: (1, M, 4), of the objects.
            masks: (1, M, h, w) bool, the masks of the objects on the first frame.
            local: the local queries of the first frame.
        """
        height, width = masks.shape[-2:]
        slots = RememberedQueries.empty(Queries(local.embed, local.boxes), (height, width))
        return slots.with_objects(boxes, masks)


class RememberingTracker(Tracker):
    """The paper's propagation; after decoding, predictions are linked to remembered objects.

    A propagated slot may drift to another object, and another slot may pick up an object that reappears.  Predictions
    are reordered by object (`ObjectMemory`), so a re-identified object keeps its id.  Training and the propagated
    queries are unchanged.

    `memory` links slots to objects; in a config, `L(ObjectMemory)(threshold=0.3)`.  None: `threshold` .2.  The other
    arguments are those of `Tracker`.
    """

    def __init__(self, *args: Any, memory: ObjectMemory | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objects = ObjectMemory(threshold=0.2) if memory is None else memory

    def extra_repr(self) -> str:
        """The settings of the memory; a run is resumed only with equal ones."""
        return str(self.objects)

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Queries, Positions]:
        """As `Tracker.forward`; the decoder's queries are in the order of the propagated slots."""
        if isinstance(past, RememberedQueries):
            past = self.propagate(past, local)
        return super().forward(past, local, embed_boxes)

    def propagate(self, past: RememberedQueries, local: Proposals) -> Queries:
        """The slots of the previous frame in the decoder's order."""
        del local
        order = past.row.argsort(dim=1)[..., None]
        return Queries(*(x.gather(1, order.expand_as(x)) for x in (past.embed, past.boxes)))

    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the objects; unchanged in training."""
        return predictions if self.training else self.objects.link(past, predictions)

    def without_memory(self) -> Tracker:
        """The paper's tracker with the same parts."""
        return Tracker(self.aligner, self.positions, self.local_positions, self.first_frame)  # type: ignore[arg-type]


class RestartingTracker(RememberingTracker):
    """A `RememberingTracker` that re-initialises slots without an object in view, with local queries, on every frame.

    In the paper, slots are local queries on the first frame only; a later object is found when a slot drifts to it.
    Here every frame proposes new and returning objects, as in the image tracker, and the memory re-identifies them.
    Slots with an object in view are propagated as in the paper, and training is unchanged.
    """

    def propagate(self, past: RememberedQueries, local: Proposals) -> Queries:
        """The slots in the decoder's order; see `memory.restart` for those without an object in view."""
        seen = past.seen.gather(1, past.row.argsort(dim=1))
        return restart(super().propagate(past, local), seen, local)


class FromProposals(FromLocal):
    """First frame: the local queries become the global queries, with the encoder's boxes instead of Mask2Box.

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

    Initially only its norms act, so it equals propagation without an aligner up to normalisation.  Random
    or pre-trained aligner weights (section 4.2) start at a higher loss.
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
