"""A part of a training set kept for scores: the truth of public validation sets is on their servers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..randomness import keyed_generator
from .datasets import VideoDataset


@dataclass(frozen=True)
class PartOfVideos(VideoDataset):
    """Some videos of another dataset, under their own ids.

    Attributes:
        whole: that dataset.
    """

    whole: VideoDataset

    def truth(self) -> dict[str, Any]:
        """The whole's truth of these videos."""
        kept = {video.id for video in self.videos}
        truth = self.whole.truth()
        part = {**truth, "videos": [video for video in truth["videos"] if video["id"] in kept]}
        if "annotations" in truth:
            part["annotations"] = [a for a in truth["annotations"] if a["video_id"] in kept]
        return part


def holdout(dataset: VideoDataset, fraction: float = 0.1, seed: int = 0, held: bool = True) -> VideoDataset:
    """The videos kept for scores, or all the others; together they are the dataset.

    Args:
        dataset: the videos; which are kept depends on their ids, not on their order.
        fraction: the part that is kept, in (0, 1); at least one video is, and one is left.
        seed: other seeds keep other videos.
        held: give the videos kept, else the others.

    Raises:
        UserError: if the fraction is none, or there are fewer than two videos.
    """
    if not 0 < fraction < 1 or len(dataset) < 2:
        raise UserError(
            f"holdout: fraction {fraction} of {len(dataset)} videos: need 0 < fraction < 1 and two videos."
        )
    order = sorted(range(len(dataset)), key=lambda i: dataset.videos[i].id)
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    drawn = torch.randperm(len(order), generator=keyed_generator(seed, "holdout"))[:count].tolist()
    kept = {order[i] for i in drawn}
    videos = [video for i, video in enumerate(dataset.videos) if (i in kept) == held]
    return PartOfVideos(videos, dataset.classes, dataset)
