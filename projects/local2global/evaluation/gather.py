"""Bringing every process's findings together before they are scored."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

Key = TypeVar("Key")
Value = TypeVar("Value")


def gather(found: dict[Key, Value]) -> dict[Key, Value]:
    """Every rank's findings by video, on rank 0; a video that a padded sampler gave twice is kept once."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return found
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    # Pickles stay in host memory: under NCCL they would be copied to every GPU.
    group = dist.new_group(backend="gloo")
    try:
        dist.gather_object(found, gathered if dist.get_rank() == 0 else None, dst=0, group=group)
    finally:
        dist.destroy_process_group(group)
    return {video: entries for share in reversed(gathered) for video, entries in share.items()}


def is_first() -> bool:
    """Whether this process is the one that scores."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
