"""Holds out part of a training set for evaluation: validation truth of YouTube-VIS 2019 and 2021 is not public."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError
from ..randomness import keyed_generator
from .datasets import VideoDataset


@dataclass(frozen=True)
class PartOfVideos(VideoDataset):
    """A subset of another dataset's videos, with the same ids.

    Attributes:
        whole: the other dataset.
    """

    whole: VideoDataset

    def truth(self) -> dict[str, Any]:
        """The ground truth of these videos."""
        ids = {video.id for video in self.videos}
        truth = self.whole.truth()
        part = {**truth, "videos": [video for video in truth["videos"] if video["id"] in ids]}
        if "annotations" in truth:
            part["annotations"] = [a for a in truth["annotations"] if a["video_id"] in ids]
        return part


def holdout(dataset: VideoDataset, fraction: float = 0.1, seed: int = 0, held: bool = True) -> VideoDataset:
    """The held-out videos, or the remaining ones.

    Args:
        dataset: the videos; the choice depends on their ids, not on their order.
        fraction: the held-out fraction, in (0, 1); at least one video is held out and one remains.
        seed: other seeds hold out other videos.
        held: return the held-out videos, else the remaining ones.

    Raises:
        UserError: if the fraction is out of range, or there are fewer than two videos.
    """
    if not 0 < fraction < 1 or len(dataset) < 2:
        raise UserError(
            f"holdout: fraction {fraction} of {len(dataset)} videos: need 0 < fraction < 1 and two videos."
        )
    order = sorted(range(len(dataset)), key=lambda i: dataset.videos[i].id)
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    drawn = torch.randperm(len(order), generator=keyed_generator(seed, "holdout"))[:count].tolist()
    positions = {order[i] for i in drawn}
    videos = [video for i, video in enumerate(dataset.videos) if (i in positions) == held]
    return PartOfVideos(videos, dataset.classes, dataset)
