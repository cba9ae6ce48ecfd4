"""Query propagation: the slots of frame t - 1 and the local queries of frame t to the decoder's queries of frame t.

Another propagation rule is a subclass of `Tracker` that overrides `forward`.  If it has `link` (`LinkingTracker`), the
model calls it after decoding; if it has `start` (`StartingTracker`), it creates the slots of given objects.  Examples:
`variants.py`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..structures import FramePredictions, Positions, Proposals, Queries
from .aligner import L2GAligner
from .positions import (
    DynamicLocalPositions,
    EmbedBoxes,
    NoPositions,
    StaticLocalPositions,
    StaticPositions,
    TrajectoryPositions,
)


@runtime_checkable
class LinkingTracker(Protocol):
    """A tracker that assigns the predictions of a frame to slots after decoding."""

    def link(self, past: Queries | None, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the slots.

        Args:
            past: the slots after the previous frame; None on the first frame.
            predictions: of the current frame, in the order of the queries that `forward` returned.

        Returns:
            The predictions, row i of slot i; their `queries` are the slots that are passed to the next frame.
        """


@runtime_checkable
class StartingTracker(Protocol):
    """A tracker that creates the initial slots from given objects."""

    def start(self, boxes: Tensor, masks: Tensor, local: Proposals) -> Queries:
        """Initial slots for a first frame with given objects.

        Args:
            boxes: (1, M, 4), of the objects in slots 0 to M - 1.
            masks: (1, M, h, w) bool.
            local: the local queries of the frame.
        """


class FromLocal(nn.Module):
    """First frame: the local queries become the global queries.

    Args:
        align: apply the aligner on the first frame too.
    """

    def __init__(self, align: bool = True) -> None:
        super().__init__()
        self.align = align

    def forward(self, local: Proposals) -> Queries:
        """Initial slots, (B, N, C), with their boxes."""
        return Queries(local.embed, local.boxes)


class Learned(nn.Module):
    """First frame in COCO pre-training (section 4.2): learned queries at the positions of the local queries."""

    align = True

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, local: Proposals) -> Queries:
        """Initial slots, (B, N, C), with their boxes."""
        return Queries(self.embed.weight.expand(len(local.embed), -1, -1), local.boxes)


class Tracker(nn.Module):
    """Query propagation with early alignment (section 3.2): slots are aligned before the decoder.

    Args:
        aligner: Eq. (3).  None passes the slots to the decoder unchanged (Table 3, row 1); l_pos is then unused, and
            g_pos is frozen.
        positions: g_pos, Eq. (2).
        local_positions: l_pos.
        first_frame: source of the first frame's slots.
    """

    def __init__(
        self,
        aligner: L2GAligner | None,
        positions: TrajectoryPositions | StaticPositions | NoPositions,
        local_positions: StaticLocalPositions | DynamicLocalPositions,
        first_frame: FromLocal | Learned,
    ) -> None:
        super().__init__()
        self.aligner = aligner
        self.positions = positions
        self.local_positions = local_positions if aligner is not None else None
        self.first_frame = first_frame
        if aligner is None:
            self.positions.requires_grad_(False)

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Queries, Positions]:
        """The decoder's input for one frame.

        Args:
            past: the slots after the previous frame; None on the first frame.
            local: the local queries of the current frame.
            embed_boxes: the decoder's MLP(PE(.)).

        Returns:
            The aligned queries with unchanged boxes, and g_pos with the reference boxes of the decoder.
        """
        slots = self.first_frame(local) if past is None else past
        positions: Positions = self.positions(slots, embed_boxes)
        if past is None:  # local boxes already come from this frame's masks
            positions = Positions(positions.embed, slots.boxes)
        align = past is not None or self.first_frame.align
        if self.aligner is None or self.local_positions is None or not align:
            return slots, positions
        l_pos = self.local_positions(local, embed_boxes)
        aligned = self.aligner(slots.embed, local.embed, positions.embed, l_pos)
        return Queries(aligned, slots.boxes), positions
