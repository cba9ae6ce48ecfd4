"""Weights on disk: saved whole or not at all, read without running anybody's code.

A checkpoint is a dict of tensors and plain values.  The names of other projects' parameters are translated in
`model_state` and nowhere else: a table from their names to ours belongs above it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

PICKLED = (".pth", ".pt")
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when a state was loaded into a model.

    Attributes:
        loaded: names that were loaded.
        missing: names the model has and the state lacks.
        unexpected: names the state has and the model lacks.
        mismatched: (name, the model's shape, the state's shape) of tensors that were left alone.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def summary(self) -> list[str]:
        """One line per top-level module, then one per tensor of another shape."""
        kinds = {
            "loaded": self.loaded,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": tuple(name for name, _, _ in self.mismatched),
        }
        counts: dict[str, Counter[str]] = {}
        for kind, names in kinds.items():
            for name in names:
                counts.setdefault(name.split(".")[0], Counter())[kind] += 1
        lines = [
            f"{module}: " + ", ".join(f"{count[kind]} {kind}" for kind in kinds if count[kind])
            for module, count in counts.items()
        ]
        return lines + [f"{name}: {theirs} for {ours}" for name, ours, theirs in self.mismatched]


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older file of that name stays whole until the new one is.

    Args:
        path: a .pth or .pt file; its folder is made.
        content: tensors, strings, numbers, None, and dicts, lists and tuples of them.

    Raises:
        UserError: for another file ending.
        TypeError: for a value that could not be read back without running code.
    """
    path = Path(path)
    if path.suffix not in PICKLED:
        raise UserError(f"{path}: checkpoints are written as .pth or .pt.")
    _require_plain(content, "checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a .pth, .pt or .safetensors file onto the CPU.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    if path.suffix not in (*PICKLED, ".safetensors"):
        raise UserError(f"{path}: expected a .pth, .pt or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in any way there is
        reason = str(error).strip().split("\n")[0].split(". ")[0][:120] or type(error).__name__
        raise UserError(
            f"{path}: damaged, or more than tensors and plain values ({reason}). Fetch or export it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict of tensors, got {type(content).__name__}.")
    return content


def model_state(content: Mapping[str, Any], source: str = "checkpoint") -> dict[str, Tensor]:
    """The parameters and buffers in a checkpoint by the names of this package.

    Args:
        content: a bare state dict, or one under "model" as detectron2's, detrex's and our trainer write it.
        source: where it comes from, the beginning of every complaint.

    Raises:
        UserError: if there is no tensor in it.
    """
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: expected a dict under 'model', got {type(state).__name__}.")
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{source}: no tensors in it, only {', '.join(list(content)[:5]) or 'nothing'}.")
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in tensors.items()}


def load_weights(
    model: nn.Module, state: Mapping[str, Any], strict: bool = True, source: str = "checkpoint"
) -> LoadReport:
    """Load a checkpoint's parameters into a model; the model is untouched when this raises.

    Args:
        model: the model.
        state: what `load_checkpoint` gave, or a state dict.
        strict: refuse a state with a tensor missing or of another shape; extra tensors are only reported.
        source: where the state comes from, the beginning of every complaint.

    Raises:
        UserError: if the state is another model's: see `strict`; without it, if nothing at all fits.
    """
    theirs, ours = model_state(state, source), model.state_dict()
    shared = [name for name in ours if name in theirs]
    fits = [name for name in shared if theirs[name].shape == ours[name].shape]
    report = LoadReport(
        loaded=tuple(fits),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in ours),
        mismatched=tuple(
            (name, tuple(ours[name].shape), tuple(theirs[name].shape))
            for name in shared
            if theirs[name].shape != ours[name].shape
        ),
    )
    if not fits or (strict and (report.missing or report.mismatched)):
        raise UserError(f"{source}: {_not_these(report)}")
    model.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    return report


def find_config(weights_path: str | Path) -> Path:
    """The config.yaml that lies beside a checkpoint.

    Raises:
        UserError: if there is none.
    """
    path = Path(weights_path).with_name("config.yaml")
    if not path.is_file():
        raise UserError(
            f"{weights_path}: no config.yaml beside it. Copy the one of its run there, or name a config."
        )
    return path


def _not_these(report: LoadReport) -> str:
    bad = [*report.missing, *(f"{name} {theirs} for {ours}" for name, ours, theirs in report.mismatched)]
    more = ", ..." if len(bad) > 3 else ""
    return (
        f"weights of another model: {len(report.loaded)} tensors fit, {len(report.missing)} are missing, "
        f"{len(report.mismatched)} have another shape, {len(report.unexpected)} are unknown "
        f"({', '.join(bad[:3])}{more}). Use the config they were trained with."
    )


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} is neither a string nor an integer")
            _require_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:
        raise TypeError(f"{where}: {type(value).__name__} is neither a tensor nor a plain value")
