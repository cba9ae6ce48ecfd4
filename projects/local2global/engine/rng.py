"""Seeds and states of the global random generators of Python, NumPy and torch."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .processes import gather


def pick_seed(seed: int, checkpoint: Mapping[str, Any] | None) -> int:
    """The seed of a run, equal on all processes.

    Args:
        seed: `train.seed`; -1 draws a new seed.
        checkpoint: the checkpoint to resume from; its seed takes precedence.
    """
    if checkpoint is not None and "seed" in checkpoint:
        return int(checkpoint["seed"])
    fresh = int.from_bytes(os.urandom(4), "little") >> 1
    return int(gather(seed if seed >= 0 else fresh)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the global generators, as tensors and plain values that a checkpoint can hold."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to a state returned by `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global generators on exit, so that draws inside the `with` have no effect after it."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state)
