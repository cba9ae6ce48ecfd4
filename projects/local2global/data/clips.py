"""A training clip: which frames of a video, and the instances seen in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..boxes import mask_to_box
from ..randomness import keyed_generator
from ..structures import Clip, ClipTargets
from .datasets import VideoRecord


class Augmentation(Protocol):
    """Changes the pixels of a clip and its masks alike."""

    def __call__(self, frames: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw for all frames.

        Args:
            frames: (T, 3, H, W) uint8.
            masks: (M, T, H, W) bool.
            generator: the only source of chance.

        Returns:
            Frames (T, 3, H', W') uint8 and masks (M, T, H', W') bool.
        """


def sample_frames(length: int, clip_length: int, window: int, generator: torch.Generator) -> tuple[int, ...]:
    """A reference frame, drawn uniformly, and others within `window` frames of it, sorted.

    No frame is taken twice while there are enough; else all are taken before any is taken again.

    Args:
        length: frames of the video.
        clip_length: frames wanted.
        window: how far from the reference frame the others may lie.
        generator: the source of chance.
    """
    reference = int(torch.randint(length, (1,), generator=generator))
    near = torch.arange(max(0, reference - window), min(length, reference + window + 1))
    others = near[near != reference]
    chosen = [reference, *others[torch.randperm(len(others), generator=generator)].tolist()]
    while len(chosen) < clip_length:
        chosen += near[torch.randperm(len(near), generator=generator)].tolist()
    return tuple(sorted(chosen[:clip_length]))


def choose_frames(
    record: VideoRecord, clip_length: int, window: int, key: tuple[int, ...], tries: int
) -> tuple[int, ...]:
    """`sample_frames` of a video, drawn again while they show no instance, at most `tries` times."""
    frames: tuple[int, ...] = ()
    for attempt in range(max(1, tries)):
        frames = sample_frames(record.length, clip_length, window, keyed_generator(*key, "frames", attempt))
        if any(record.present(t).any() for t in frames):
            break
    return frames


def make_targets(labels: Tensor, ids: Tensor, masks: Tensor) -> ClipTargets:
    """The truth of a clip from its masks; instances without a pixel in any frame are dropped.

    Args:
        labels: (M,) int64 class indices.
        ids: (M,) int64 identities.
        masks: (M, T, H, W) bool.
    """
    visible = masks.flatten(2).any(dim=-1)
    kept = visible.any(dim=-1)
    masks, visible = masks[kept], visible[kept]
    boxes = mask_to_box(masks, torch.zeros(4)) if len(masks) else torch.zeros((*masks.shape[:2], 4))
    return ClipTargets(labels=labels[kept], ids=ids[kept], masks=masks, boxes=boxes, visible=visible)


def make_clip(
    record: VideoRecord, frame_ids: Sequence[int], augmentation: Augmentation, key: tuple[int, ...]
) -> Clip:
    """Decode, augment and describe the chosen frames.

    Args:
        record: the video.
        frame_ids: positions of the frames, in order; a position may occur more than once.
        augmentation: applied to frames and masks together.
        key: (seed, iteration, global clip index), the name of the clip's draws.
    """
    distinct = sorted(set(frame_ids))
    order = [distinct.index(t) for t in frame_ids]
    frames = torch.stack([record.frame(t) for t in distinct])[order]
    seen = torch.from_numpy(record.present(distinct[0]).copy())
    for t in distinct[1:]:
        seen |= torch.from_numpy(record.present(t))
    masks = torch.stack([record.masks(t)[seen] for t in distinct], dim=1)[:, order]
    frames, masks = augmentation(frames, masks, keyed_generator(*key, "augment"))
    return Clip(
        frames=frames,
        size=record.size,
        video_id=record.id,
        frame_ids=tuple(frame_ids),
        targets=make_targets(record.labels[seen], record.ids[seen], masks),
        key=key,
    )
