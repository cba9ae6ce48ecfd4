"""Mask and dice losses of all matched pairs at points, frame by frame.

Every set of a frame's predictions is compared with an instance at points of its own, chosen among candidates that all
sets share.  Masks are made whole and then read at the points: there are fewer of them than mask features have channels,
and three times as many candidates as a mask has points to compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..randomness import keyed_generator
from ..structures import Clip
from .layers import mask_logits
from .losses import PointSampler, dice_loss, sample_points, sigmoid_ce_loss


def mask_losses(
    sampler: PointSampler,
    clips: Sequence[Clip],
    kept: NDArray[np.int64],
    embed: Tensor,
    maps: Sequence[Tensor],
    extent: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mask and dice losses of every pair.

    Args:
        sampler: which points.
        clips: the batch.
        kept: (F',) numbers of the supervised frames.
        embed: (S, F', M, C) mask embeddings of the pairs.
        maps: (C, h, w) mask features of each of these frames.
        extent: (F', 2).

    Returns:
        (S, F', M) twice.
    """
    depth, number, count, _ = embed.shape
    if not number * count:  # no instance at all; the sum keeps the heads in the graph, as DDP needs
        nothing = embed.sum(dim=-1) + sum(features.sum() for features in maps) * 0
        return nothing, nothing
    pairs = embed.permute(1, 2, 0, 3).flatten(1, 2)  # (F', M * S, C)
    losses = []
    for f, embeds, features, size in zip(kept, pairs.unbind(), maps, extent.unbind(), strict=True):
        logits = mask_logits(embeds[None], features[None], size[None])[0].unflatten(0, (count, depth))
        losses.append(_of_frame(sampler, clips, int(f), logits, size))
    mask, dice = (torch.stack(every, dim=1).permute(2, 1, 0) for every in zip(*losses, strict=True))
    return mask, dice


def _of_frame(
    sampler: PointSampler, clips: Sequence[Clip], f: int, logits: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask and dice losses, (M, S) each, of (M, S, h, w) masks of frame f."""
    candidates, truth = _true_points(sampler, clips, f, len(logits), logits.device)
    chosen = _chosen(sampler, logits.detach(), candidates, extent)
    return _compared(logits, candidates, truth, chosen, extent)


@torch.no_grad()
def _chosen(sampler: PointSampler, logits: Tensor, candidates: Tensor, extent: Tensor) -> Tensor:
    """Which of (M, R, 2) candidates each of (M, S, h, w) masks is compared at: (M, S, P)."""
    at = sample_points(logits, candidates, extent.expand(len(logits), -1))
    return sampler.choose(at)


@torch.no_grad()
def _true_points(
    sampler: PointSampler, clips: Sequence[Clip], f: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Candidate points of a frame's instances, (M, R, 2), shared by all sets, and the truth there, (M, R)."""
    t, clip = f // len(clips), clips[f % len(clips)]
    assert clip.targets is not None
    generator = keyed_generator(*clip.key, "loss points", t, device=device)
    drawn = sampler.candidates(len(clip.targets), generator)
    if not len(drawn):
        return pad_rows(drawn, count), pad_rows(drawn[..., 0], count)
    true = sample_points(clip.targets.masks[:, t, None].float(), drawn)[:, 0]
    return pad_rows(drawn, count), pad_rows(true, count)


def _compared(
    logits: Tensor, candidates: Tensor, truth: Tensor, chosen: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask and dice losses, (M, S) each, of (M, S, h, w) masks at the chosen of (M, R) candidates."""
    count, depth = logits.shape[:2]
    points = candidates[:, None].expand(-1, depth, -1, -1).gather(2, chosen[..., None].expand(-1, -1, -1, 2))
    at = sample_points(
        logits.flatten(0, 1)[:, None], points.flatten(0, 1), extent.expand(count * depth, -1)
    ).view(chosen.shape)
    true = truth[:, None].expand(-1, depth, -1).gather(2, chosen)
    return sigmoid_ce_loss(at, true), dice_loss(at, true)


def pad_rows(rows: Tensor, count: int) -> Tensor:
    """(m, ...) to (count, ...), zeros below."""
    return torch.cat((rows, rows.new_zeros(count - len(rows), *rows.shape[1:])))
