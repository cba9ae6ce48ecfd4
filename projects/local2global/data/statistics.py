"""Statistics of video datasets: how many objects there are, and how much they occlude one another.

The bounding-box occlusion rate (BOR) of a frame is the area covered by at least two boxes over the area covered by at
least one (Qi et al., IJCV 2022, section 3.3); mBOR is its mean over the frames with an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from ..boxes import cxcywh_to_xyxy, mask_to_box
from .datasets import VideoRecord

#: Published statistics.  OVIS and YouTube-VIS 2021: Table 1 of Qi et al., "Occluded Video Instance Segmentation: A
#: Benchmark", IJCV 2022.  A video of OVIS has 62,641 / 901 annotated frames; one of YouTube-VIS 2021 lasts 5.03 s, of
#: which 6 frames a second are annotated.
PUBLISHED = {
    "OVIS": {
        "frames per video": 69.5,
        "instances per video": 5.80,
        "objects per frame": 4.72,
        "visible share of a video": 10.05 / 12.77,
        "mBOR": 0.22,
    },
    "YouTube-VIS 2021": {
        "frames per video": 30.2,
        "instances per video": 2.10,
        "objects per frame": 1.95,
        "visible share of a video": 4.73 / 5.03,
        "mBOR": 0.06,
    },
}


def statistics(videos: Sequence[VideoRecord]) -> dict[str, float]:
    """Means over videos, instances and frames, with the names of `PUBLISHED`, and the gaps in which objects are hidden.

    `gaps per video` counts the runs of at least three frames without a pixel of an object that is seen before and
    after; `median gap` and `longest gap` are their lengths in frames.

    Args:
        videos: at least one video, with at least one visible object.
    """
    rates: list[float] = []
    visible: list[NDArray[np.bool_]] = []  # (M, T) of each video
    for video in videos:
        frames = [video.masks(t) for t in range(video.length)]
        rates += [occlusion_rate(masks) for masks in frames if masks.any()]
        visible.append(np.stack([masks.flatten(1).any(1).numpy() for masks in frames], axis=1))
    instances = [row for table in visible for row in table if row.any()]
    # From the first to the last visible frame, as OVIS counts the duration of an instance.
    spans = [np.flatnonzero(row)[[0, -1]] @ (-1, 1) + 1 for row in instances]
    gaps = [length for row in instances for length in gap_lengths(row) if length >= 3]
    lengths = [len(row) for row in instances]
    return {
        "frames per video": float(np.mean([video.length for video in videos])),
        "instances per video": len(instances) / len(videos),
        "objects per frame": sum(table.sum() for table in visible) / sum(video.length for video in videos),
        "visible share of a video": float(np.mean(np.divide(spans, lengths))),
        "mBOR": float(np.mean(rates)),
        "gaps per video": len(gaps) / len(videos),
        "median gap": float(np.median(gaps)) if gaps else 0.0,
        "longest gap": float(max(gaps, default=0)),
    }


def occlusion_rate(masks: torch.Tensor) -> float:
    """BOR of the boxes of (M, H, W) bool masks, counted in pixels; at least one mask has a pixel."""
    masks = masks[masks.flatten(1).any(1)]
    height, width = masks.shape[1:]
    boxes = cxcywh_to_xyxy(mask_to_box(masks, torch.zeros(4))) * torch.tensor([width, height] * 2)
    left, top, right, bottom = boxes.round().unbind(-1)
    x, y = torch.arange(width), torch.arange(height)
    columns = (x >= left[:, None]) & (x < right[:, None])
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    depth = (rows[:, :, None] & columns[:, None]).sum(0)
    return float((depth >= 2).sum() / (depth >= 1).sum())


def gap_lengths(visible: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of False between two Trues."""
    runs = [(bool(value), len(list(run))) for value, run in groupby(visible)]
    return [length for value, length in runs[1:-1] if not value]
