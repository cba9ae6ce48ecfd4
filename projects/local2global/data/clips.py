"""A training clip: which frames of a video, and the instances seen in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..boxes import mask_to_box
from ..randomness import keyed_generator
from ..structures import Clip, ClipTargets
from .readers.records import VideoRecord, sampled_masks, shrunk_frame
from .views import View


class Augmentation(Protocol):
    """Decides what a clip shows of its video, and changes its colours; one draw for all frames."""

    def view(self, view: View, generator: torch.Generator) -> View:
        """What to show, given all of every frame; `generator` is the only source of chance."""

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """(T, 3, H, W) uint8 frames in other colours."""


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

    Pixels are resampled once, bilinearly.  A mask is read at the source pixels in the middle of the drawn ones.

    Args:
        record: the video.
        frame_ids: positions of the frames, in order; a position may occur more than once.
        augmentation: what is shown of them.
        key: (seed, iteration, global clip index), the name of the clip's draws.
    """
    generator = keyed_generator(*key, "augment")
    view = augmentation.view(View.whole(record.size, len(frame_ids)), generator)
    images = {t: shrunk_frame(record, t, view.shrink) for t in set(frame_ids)}
    frames = torch.stack([view.draw(images[t], i) for i, t in enumerate(frame_ids)])
    seen = np.logical_or.reduce([record.present(t) for t in set(frame_ids)])
    masks = torch.stack([_draw_masks(record, t, seen, view, i) for i, t in enumerate(frame_ids)], dim=1)
    rows = torch.from_numpy(seen)
    return Clip(
        frames=augmentation.recolour(frames.contiguous(), generator),
        size=record.size,
        video_id=record.id,
        frame_ids=tuple(frame_ids),
        targets=make_targets(record.labels[rows], record.ids[rows], masks),
        key=key,
    )


def _draw_masks(record: VideoRecord, t: int, wanted: NDArray[np.bool_], view: View, i: int) -> Tensor:
    """(m, h, w) bool masks of the wanted instances in frame `t`, as frame `i` of the clip shows them."""
    if view.angles:
        return view.place(view.turn_masks(record.masks(t)[torch.from_numpy(wanted)], i))
    return view.place(sampled_masks(record, t, view.rows(i), view.columns(i), wanted))
