"""Weights on disk: saved whole or not at all, read without running anybody's code.

A checkpoint is a dict of tensors and plain values.  The names of other projects' parameters stand in `names.py` and are
translated in `read_state`, nowhere else.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import class_heads as coco
from .names import DETREX, Project, Translation, recognise, to_ours, to_theirs
from .pickles import load_pickle

PICKLED = (".pth", ".pt")
FOREIGN = (".pkl", ".safetensors")
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when a state was loaded into a model.

    Attributes:
        loaded: names that were loaded.
        missing: names the model has and the state lacks.
        unexpected: names the state has and the model lacks.
        mismatched: (name, the model's shape, the state's shape) of tensors that were left alone.
        reshaped: (name, what was done) of tensors that were fitted to the model's classes.
        dropped: (the state's name, why) of tensors that no model of ours has a use for.
        project: whose names the state had, None for ours.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    reshaped: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    project: str | None = None

    @property
    def half_loaded(self) -> tuple[str, ...]:
        """The parts of the model of which some tensors were loaded and some were not."""
        lacking = {_part(name) for name in (*self.missing, *(name for name, _, _ in self.mismatched))}
        shapes = {_part(name) for name, _, _ in self.mismatched}
        touched = {_part(name) for name in self.loaded} | shapes
        return tuple(sorted(lacking & touched))

    def summary(self) -> list[str]:
        """One line per part of the model, then one per tensor of another shape, refitted, or dropped for a reason."""
        reshaped = tuple(name for name, _ in self.reshaped)
        kinds = {
            "loaded": tuple(name for name in self.loaded if name not in reshaped),
            "reshaped": reshaped,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": tuple(name for name, _, _ in self.mismatched),
        }
        counts: dict[str, Counter[str]] = {}
        for kind, names in kinds.items():
            for name in names:
                counts.setdefault(_part(name), Counter())[kind] += 1
        lines = [
            f"{module}: " + ", ".join(f"{count[kind]} {kind}" for kind in kinds if count[kind])
            for module, count in counts.items()
        ]
        reasons = Counter(why for _, why in self.dropped)
        return [
            *([f"names of {self.project}"] if self.project else []),
            *lines,
            *(f"{name}: {theirs} for {ours}" for name, ours, theirs in self.mismatched),
            *(f"{name}: {done}" for name, done in self.reshaped),
            *(f"{count} dropped: {why}" for why, count in reasons.items()),
        ]


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
    """Read a .pth, .pt, .pkl or .safetensors file onto the CPU; a .pkl may hold arrays and plain values only.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    if path.suffix not in (*PICKLED, *FOREIGN):
        raise UserError(f"{path}: expected a .pth, .pt, .pkl or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix == ".pkl":
            content = load_pickle(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers fail in any way there is
        reason = str(error).strip().split("\n")[0].split(". ")[0][:120] or type(error).__name__
        raise UserError(
            f"{path}: damaged, or more than tensors and plain values ({reason}). Fetch or export it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict of tensors, got {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class State:
    """A checkpoint's parameters and buffers by the names of this package.

    Attributes:
        tensors: by our names.
        project: whose names they were; None for ours.
        unknown: their names that have no counterpart here.
        dropped: (their name, why) of tensors that a model of ours has no use for.
    """

    tensors: dict[str, Tensor]
    project: Project | None = None
    unknown: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()


def read_state(content: Mapping[str, Any], source: str = "checkpoint") -> State:
    """The parameters and buffers in a checkpoint, whoever named them (see `names.py`).

    Args:
        content: a bare state dict, or one under "model" as detectron2's, detrex's and our trainer write it, or under
            "state_dict".
        source: where it comes from, the beginning of every complaint.

    Raises:
        UserError: if there is no tensor in it.
    """
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: expected a dict under 'model', got {type(state).__name__}.")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        inside = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(f"{source}: no tensors in it, only {inside}.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    project = recognise(tensors)
    if project is None:
        return State(tensors)
    reasons = {name: why for name in tensors for pattern, why in project.dropped if re.search(pattern, name)}
    kept = {name: value for name, value in tensors.items() if name not in reasons}
    translation = to_ours(kept, project.rows, source)
    return State(translation.state, project, translation.unknown, tuple(reasons.items()))


def load_weights(
    model: nn.Module,
    state: Mapping[str, Any],
    strict: bool = True,
    source: str = "checkpoint",
    partial: bool = False,
) -> LoadReport:
    """Load a checkpoint's parameters into a model; the model is untouched when this raises.

    Class heads that were trained on COCO are re-mapped to the model's own classes: another project's, and, without
    `strict`, ours of another size, from pre-training.

    Args:
        model: the model.
        state: what `load_checkpoint` gave, or a state dict; by our names or another project's.
        strict: refuse a state with a tensor missing or of another shape; extra tensors are only reported.
        source: where the state comes from, the beginning of every complaint.
        partial: without `strict`, accept a part of the model that the state fills incompletely too.

    Raises:
        UserError: if the state is another model's: see `strict`.  Without it, if nothing at all fits, or if some but
            not all of a part does: a part is loaded as a whole or not at all, unless `partial`.
    """
    read, ours = read_state(state, source), model.state_dict()
    theirs = read.tensors
    reshaped: tuple[tuple[str, str], ...] = ()
    if read.project is not None or (not strict and _other_heads(theirs, ours)):
        theirs, reshaped = remap_classes(theirs, ours, getattr(model, "classes", ()))
    left = tuple((name, why) for name, why in LEFT_BEHIND.items() if name in theirs and name not in ours)
    shared = [name for name in ours if name in theirs]
    fits = [name for name in shared if theirs[name].shape == ours[name].shape]
    report = LoadReport(
        loaded=tuple(fits),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=(
            *(name for name in theirs if name not in ours and name not in LEFT_BEHIND),
            *read.unknown,
        ),
        mismatched=tuple(
            (name, tuple(ours[name].shape), tuple(theirs[name].shape))
            for name in shared
            if theirs[name].shape != ours[name].shape
        ),
        reshaped=reshaped,
        dropped=(*read.dropped, *left),
        project=None if read.project is None else read.project.name,
    )
    if not fits or (strict and (report.missing or report.mismatched)):
        raise UserError(f"{source}: {_not_these(report)}")
    if not (strict or partial) and report.half_loaded:
        raise UserError(f"{source}: {_half_of_these(report)}")
    model.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    return report


#: Of one phase of training, without a use in the next, and why.
LEFT_BEHIND = {
    "tracker.first_frame.embed.weight": "learned queries of pre-training, which a video's local queries replace"
}

#: Rows of these are classes.
CLASS_HEADS = ("segmenter.class_embed.weight", "segmenter.class_embed.bias", "segmenter.label_enc.weight")


def _other_heads(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> bool:
    shared = [name for name in CLASS_HEADS if name in theirs and name in ours]
    return any(theirs[name].shape[0] != ours[name].shape[0] for name in shared)


def remap_classes(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], classes: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...]]:
    """Class heads trained on COCO for other classes: the rows that the COCO map names are copied, the rest stay new.

    Args:
        theirs: a state by our names.
        ours: the model's own, freshly initialised (a new class starts at a score of .01, a bias of -4.595).
        classes: the model's, {id, name} each.

    Returns:
        The state, and (name, what was done) of every tensor changed.
    """
    state, notes = dict(theirs), []
    rows = coco.head_rows(classes)
    size = len(theirs.get(CLASS_HEADS[0], ()))
    same = len(rows) == size and (size == coco.PANOPTIC_ROWS or rows == list(range(size)))
    if size not in (coco.INSTANCE_ROWS, coco.PANOPTIC_ROWS) or same or not classes:
        return state, ()
    known = [k for k, row in enumerate(rows) if row is not None]
    copied = [row for row in rows if row is not None]
    for name in CLASS_HEADS:
        if name in theirs and name in ours and len(ours[name]) == len(rows) and len(theirs[name]) == size:
            value = ours[name].clone()
            value[known] = theirs[name][copied].to(value)
            state[name] = value
            notes.append((name, f"{len(known)} of {len(rows)} rows copied by the COCO map, the rest new"))
    return state, tuple(notes)


def to_detrex(state: Mapping[str, Tensor]) -> Translation:
    """A model's state by the names of detrex's MaskDINO, which loads it strictly; the tracker has none there."""
    layers = {int(name.split(".")[3]) for name in state if name.startswith("segmenter.decoder.layers.")}
    found = to_theirs(state, DETREX.rows, copies=len(layers))
    constant = torch.ones(len(state["segmenter.class_embed.bias"]) + 1)
    constant[-1] = 0.1  # its criterion's weight of "nothing"
    return Translation({**found.state, "criterion.empty_weight": constant}, found.unknown)


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
    if (
        report.loaded
        and not report.mismatched
        and all(name.startswith("tracker.") for name in report.missing)
    ):
        return (
            "there is no tracker in these weights. Add model.tracker=bypass: "
            "identities are then matched, not learned."
        )
    more = ", ..." if len(bad) > 3 else ""
    return (
        f"weights of another model: {len(report.loaded)} tensors fit, {len(report.missing)} are missing, "
        f"{len(report.mismatched)} have another shape, {len(report.unexpected)} are unknown "
        f"({', '.join(bad[:3])}{more}). Use the config they were trained with."
    )


def _half_of_these(report: LoadReport) -> str:
    parts = ", ".join(report.half_loaded)
    shapes = [f"{name} {theirs} for {ours}" for name, ours, theirs in report.mismatched]
    bad = [*shapes, *(name for name in report.missing if _part(name) in report.half_loaded)]
    more = ", ..." if len(bad) > 3 else ""
    return (
        f"only some of {parts} fits ({', '.join(bad[:3])}{more}). Use a config with the same sizes, or load what fits "
        "with train.init_partial=true (--partial)."
    )


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to: `segmenter.encoder`, `tracker.aligner`."""
    return ".".join(name.split(".")[:-1][:2])


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
