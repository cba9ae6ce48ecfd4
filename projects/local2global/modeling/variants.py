"""No tracker: frames are segmented one by one, and what is most alike from one to the next is called the same object.

The idea of MinVIS (Huang, Yu and Anandkumar, NeurIPS 2022): the queries of a good image segmenter look alike wherever
they show the same object.  It gives image-only weights (a released MaskDINO) a video at once.  Identities are matched,
not learned: an object that is hidden for a frame loses its slot to whatever takes its place.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import FramePredictions, Positions, Proposals, Queries
from .matcher import assign
from .positions import EmbedBoxes


class BypassTracker(nn.Module):
    """Decodes every frame's local queries by themselves, and links them to the last frame's afterwards.

    Attributes:
        aligner: there is none.
        caveat: what a user is told before looking at identities.
    """

    aligner: None = None
    caveat = "model.tracker=bypass: identities are matched from frame to frame, not learned"

    def forward(
        self, past: Queries | None, local: Proposals, embed_boxes: EmbedBoxes
    ) -> tuple[Tensor, Positions]:
        """(B, N, C) the local queries, where their masks are: MaskDINO on one image, whatever came before."""
        del past
        return local.embed, Positions(embed_boxes(local.boxes), local.boxes)

    def link(self, past: Queries | None, found: FramePredictions) -> FramePredictions:
        """What the decoder found, in the order of the last frame's slots."""
        return found if past is None else found.in_order(most_alike(past.embed, found.queries.embed))


@torch.no_grad()
def most_alike(past: Tensor, now: Tensor) -> Tensor:
    """The one-to-one assignment of greatest summed cosine similarity.

    Args:
        past: (B, N, C).
        now: (B, N, C).

    Returns:
        (B, N) int64: which row of `now` belongs to each row of `past`.
    """
    unlike = -F.normalize(past.float(), dim=-1) @ F.normalize(now.float(), dim=-1).mT
    order = np.stack([assign(cost)[1] for cost in unlike.cpu().numpy()])  # rows come out in order
    return torch.from_numpy(order).to(past.device)
