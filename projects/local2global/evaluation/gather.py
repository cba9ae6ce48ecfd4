"""Collects every process's results on rank 0."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

Key = TypeVar("Key")
Value = TypeVar("Value")


def gather(results: dict[Key, Value]) -> dict[Key, Value]:
    """The results of all ranks by video, on rank 0; a video that a padded sampler repeats is taken once."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return results
    gathered: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    # gloo keeps the pickles in host memory; NCCL would copy them to every GPU.
    group = dist.new_group(backend="gloo")
    try:
        dist.gather_object(results, gathered if dist.get_rank() == 0 else None, dst=0, group=group)
    finally:
        dist.destroy_process_group(group)
    return {video: entries for rank in reversed(gathered) for video, entries in rank.items()}


def is_first() -> bool:
    """Whether this process has rank 0."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
