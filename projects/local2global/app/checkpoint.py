"""Checkpoints of `l2g predict`: the state of the stream, saved in the output folder while the video is incomplete.

`state.safetensors` is written every `EVERY` frames and at an interruption.  It is deleted with the last frame.
`--resume` continues after its frame; the lines of `frames.jsonl` beyond it are computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import UserError
from ..weights.checkpoint import save_tensors

EVERY = 100  # frames: one minute of a large model on a CPU, some seconds on a GPU

_MAX_BYTES = 1 << 30


class Checkpoint:
    """The saved state of a stream.

    Args:
        folder: output folder.

    Attributes:
        state: what `save` writes.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written."""
        self.path = folder / "state.safetensors"
        self.state: Mapping[str, Tensor] = {}

    def read(self) -> dict[str, Tensor] | None:
        """The saved state; None if the video is complete.

        Raises:
            UserError: if the file is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                raise ValueError("too large")
            return load(self.path.read_bytes())
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{self.path}: damaged ({error}); run without --resume") from error

    def update(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state after a frame, and saves it if it is due."""
        self.state = state
        if int(state["length"]) % EVERY == 0:
            self.save()

    def save(self) -> None:
        """Writes the state atomically."""
        state = {key: value.detach().cpu().contiguous() for key, value in self.state.items()}
        save_tensors(self.path, state)

    def delete(self) -> None:
        """Marks the video as complete."""
        self.path.unlink(missing_ok=True)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's structure, settings and weights; it does not depend on the machine."""
    settings = [getattr(model, name, None) for name in ("test_size", "classes")]
    digest = hashlib.sha256(f"{model}{settings}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_run(folder: Path, saved: Any, run: Mapping[str, Any]) -> None:
    """Compares what determines the results of a run with what stream.json says about the interrupted one.

    Raises:
        UserError: if they differ, or stream.json is of a version that did not save it.
    """
    if not isinstance(saved, dict) or saved.keys() != run.keys():
        raise UserError(f"--resume: {folder} does not say how it was made; run without --resume")
    for name, value in run.items():
        if value is None:
            raise UserError(f"--resume: this {name} cannot be read a second time; run without --resume")
        if saved[name] != value:
            raise UserError(
                f"--resume: {folder} was made with {_ARTICLES[name]}; run without --resume, or with another --output"
            )


_ARTICLES = {"source": "another source", "model": "other weights", "options": "other options"}
