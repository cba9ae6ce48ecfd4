"""Training clips: which frames of a video are sampled, and the targets of the instances visible in them."""

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
from .datasets import VideoRecord, sampled_masks, shrunk_frame
from .views import View


class Augmentation(Protocol):
    """Geometry and colours of a clip, drawn once for all of its frames."""

    def view(self, view: View, generator: torch.Generator) -> View:
        """The geometry of the clip, given the view of whole frames; `generator` is the only source of randomness."""

    def recolour(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """(T, 3, H, W) uint8 frames with changed colours."""


def sample_frames(length: int, clip_length: int, window: int, generator: torch.Generator) -> tuple[int, ...]:
    """A reference frame, drawn uniformly, and others within `window` frames of it, sorted.

    Frames are drawn without replacement while there are enough; otherwise every frame is used before any repeats.

    Args:
        length: frames of the video.
        clip_length: frames of the clip.
        window: the largest distance of the others from the reference frame.
        generator: source of randomness.
    """
    reference = int(torch.randint(length, (1,), generator=generator))
    near = torch.arange(max(0, reference - window), min(length, reference + window + 1))
    others = near[near != reference]
    frames = [reference, *others[torch.randperm(len(others), generator=generator)].tolist()]
    while len(frames) < clip_length:
        frames += near[torch.randperm(len(near), generator=generator)].tolist()
    return tuple(sorted(frames[:clip_length]))


def choose_frames(
    record: VideoRecord, clip_length: int, window: int, key: tuple[int, ...], tries: int
) -> tuple[int, ...]:
    """`sample_frames` of a video, redrawn at most `tries` times while no instance is visible."""
    frames: tuple[int, ...] = ()
    for attempt in range(max(1, tries)):
        frames = sample_frames(record.length, clip_length, window, keyed_generator(*key, "frames", attempt))
        if any(record.present(t).any() for t in frames):
            break
    return frames


def make_targets(labels: Tensor, ids: Tensor, masks: Tensor) -> ClipTargets:
    """The targets of a clip; instances without a pixel in any frame are dropped.

    Args:
        labels: (M,) int64 class indices.
        ids: (M,) int64 annotation ids.
        masks: (M, T, H, W) bool.
    """
    visible = masks.flatten(2).any(dim=-1)
    rows = visible.any(dim=-1)
    masks, visible = masks[rows], visible[rows]
    boxes = mask_to_box(masks, torch.zeros(4)) if len(masks) else torch.zeros((*masks.shape[:2], 4))
    return ClipTargets(labels=labels[rows], ids=ids[rows], masks=masks, boxes=boxes, visible=visible)


def make_clip(
    record: VideoRecord, frame_ids: Sequence[int], augmentation: Augmentation, key: tuple[int, ...]
) -> Clip:
    """Decodes and augments the sampled frames of a video.

    Pixels are resampled once, bilinearly.  Masks are sampled at the source pixel in the middle of each output pixel.

    Args:
        record: the video.
        frame_ids: frame indices in order; an index may repeat.
        augmentation: geometry and colours.
        key: (seed, iteration, global clip index), the key of the clip's random draws.
    """
    generator = keyed_generator(*key, "augment")
    view = augmentation.view(View.whole(record.size, len(frame_ids)), generator)
    images = {t: shrunk_frame(record, t, view.shrink) for t in set(frame_ids)}
    frames = torch.stack([view.draw(images[t], i) for i, t in enumerate(frame_ids)])
    present = np.logical_or.reduce([record.present(t) for t in set(frame_ids)])
    masks = torch.stack([_draw_masks(record, t, present, view, i) for i, t in enumerate(frame_ids)], dim=1)
    rows = torch.from_numpy(present)
    return Clip(
        frames=augmentation.recolour(frames.contiguous(), generator),
        size=record.size,
        video_id=record.id,
        frame_ids=tuple(frame_ids),
        targets=make_targets(record.labels[rows], record.ids[rows], masks),
        key=key,
    )


def _draw_masks(record: VideoRecord, t: int, instances: NDArray[np.bool_], view: View, i: int) -> Tensor:
    """(m, h, w) bool masks of the selected instances: frame `t` of the video as frame `i` of the clip."""
    if view.angles:
        return view.place(view.rotate_masks(record.masks(t)[torch.from_numpy(instances)], i))
    return view.place(sampled_masks(record, t, view.rows(i), view.columns(i), instances))
