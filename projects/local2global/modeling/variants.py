"""Variants that are not in the paper.

- `BypassTracker`: frames are segmented one by one and linked afterwards, for image-only weights.
- `FromProposals`: the first frame's slots have the encoder's boxes, for training from scratch.
- `IdentityStartAligner`: an aligner with zero residual branches, for video training without pre-training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import FramePredictions, Positions, Proposals, Queries
from .aligner import AlignerLayer, L2GAligner
from .matcher import assign
from .positions import EmbedBoxes
from .tracker import FromLocal


class BypassTracker(nn.Module):
    """Decodes the local queries of every frame, then links them to the slots of the previous frame.

    This is the idea of MinVIS (Huang, Yu and Anandkumar, NeurIPS 2022): queries of a good image segmenter are similar
    wherever they show the same object.  It makes image-only weights, such as a released MaskDINO, usable on videos.
    Identities are matched, not learned: an object that is hidden for a frame loses its slot.

    Attributes:
        aligner: always None.
        caveat: warning that is printed to users.
    """

    aligner: None = None
    caveat = "model.tracker=bypass: identities are matched from frame to frame, not learned"

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Queries, Positions]:
        """The local queries at the boxes of their masks, as MaskDINO does on one image; `past` is ignored."""
        del past
        return Queries(local.embed, local.boxes), Positions(embed_boxes(local.boxes), local.boxes)

    def link(self, past: Queries, predictions: FramePredictions) -> FramePredictions:
        """The predictions in the order of the previous frame's slots."""
        return predictions.in_order(most_similar(past.embed, predictions.queries.embed))


@torch.no_grad()
def most_similar(past: Tensor, current: Tensor) -> Tensor:
    """The one-to-one assignment with the largest summed cosine similarity.

    Args:
        past: (B, N, C).
        current: (B, N, C).

    Returns:
        (B, N) int64: the row of `current` that is assigned to each row of `past`.
    """
    costs = -F.normalize(past.float(), dim=-1) @ F.normalize(current.float(), dim=-1).mT  # (B, N, N)
    order = np.stack([assign(cost)[1] for cost in costs.cpu().numpy()])  # rows are returned in order
    return torch.from_numpy(order).to(past.device)


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
