"""How queries cross frames: past queries and local queries in, aligned queries and their positions out.

Another way to propagate is another class with `Tracker`'s `forward` and `link`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..structures import FramePredictions, Positions, Proposals, Queries
from .aligner import L2GAligner
from .positions import (
    DynamicLocalPositions,
    EmbedBoxes,
    StaticLocalPositions,
    StaticPositions,
    TrajectoryPositions,
)


class FromLocal(nn.Module):
    """The first frame: the local queries are the global ones.

    Args:
        align: pass them through the aligner like any other frame's.
    """

    def __init__(self, align: bool = True) -> None:
        super().__init__()
        self.align = align

    def forward(self, local: Proposals) -> Queries:
        """The slots of a video that begins."""
        return Queries(local.embed, local.boxes)


class FromProposals(FromLocal):
    """The first frame, at the encoder's own boxes instead of those of the masks.

    For training from scratch.  While a model can't tell alike objects apart, the masks of all its local queries cover
    all of them, Mask2Box sends every slot to that one box, and there they stay alike; the encoder's boxes lie where
    their tokens do.
    """

    def forward(self, local: Proposals) -> Queries:
        """The slots of a video that begins."""
        boxes = local.predictions.boxes
        assert boxes is not None
        return Queries(local.embed, boxes.detach())


class Learned(nn.Module):
    """COCO pre-training (section 4.2): learned queries at the positions of the local ones.

    Args:
        num_queries: slots N.
        dim: width C.
    """

    align = True

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_queries, dim)

    def forward(self, local: Proposals) -> Queries:
        """The slots of a video that begins."""
        return Queries(self.embed.weight.expand(len(local.embed), -1, -1), local.boxes)


class Tracker(nn.Module):
    """Query propagation with early alignment.

    Args:
        aligner: Eq. (3); None hands the past queries straight to the decoder (Table 3, row 1), builds no l_pos and
            trains no g_pos.
        positions: g_pos, Eq. (2).
        local_positions: l_pos.
        first_frame: where the first frame's queries come from.
    """

    def __init__(
        self,
        aligner: L2GAligner | None,
        positions: TrajectoryPositions | StaticPositions,
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
    ) -> tuple[Tensor, Positions]:
        """One frame's start.

        Args:
            past: the slots of the last frame, None on the first.
            local: the current frame's proposals.
            embed_boxes: the decoder's MLP(PE(.)), lent.

        Returns:
            (B, N, C) the queries for the decoder, and where they look.
        """
        queries = self.first_frame(local) if past is None else past
        positions = self.positions(queries, embed_boxes)
        if past is None:
            positions = Positions(positions.embed, positions.boxes)
        aligned = past is not None or self.first_frame.align
        if self.aligner is None or self.local_positions is None or not aligned:
            return queries.embed, positions
        l_pos = self.local_positions(local, embed_boxes)
        return self.aligner(queries.embed, local.embed, positions.embed, l_pos), positions

    def link(self, past: Queries | None, found: FramePredictions) -> FramePredictions:
        """What the decoder found, as it is: row i is slot i, because queries carry identity."""
        del past
        return found
