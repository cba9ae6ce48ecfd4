"""Checkpoints: atomic saving, loading without code execution, and loading into a model.

A checkpoint is a dict of tensors and plain values.  Parameter names of other projects are defined in `names.py` and
translated in `read_state` only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.saved import read_yaml
from ..errors import UserError
from ..files import atomic_path, cannot_write, require_space
from .class_heads import CLASS_HEADS, match_rows, remap_heads, require_all
from .names import DETREX, Project, Translation, recognise, to_ours, to_theirs
from .pickles import load_pickle, load_torch
from .report import LoadReport

PICKLED = (".pth", ".pt")
FOREIGN = (".pkl", ".safetensors")
PLAIN = (str, int, float, bool, type(None))

#: Largest magnitude of a weight in a sound checkpoint; larger weights come from a diverged training.
LARGEST = 1e6


def check_weights(state: Mapping[str, Any], source: str, remedy: str) -> None:
    """Check that every floating-point tensor is finite and at most `LARGEST` in magnitude.

    Args:
        state: tensors by name; other values are ignored.
        source: where they come from, for the message.
        remedy: a sentence appended to the message.

    Raises:
        UserError: naming the first tensor that is not.
    """
    tensors = {
        k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point() and v.numel()
    }
    if not tensors:
        return
    # One device synchronisation for all tensors.
    largest = torch.stack([value.detach().abs().amax().double() for value in tensors.values()]).tolist()
    for name, value in zip(tensors, largest, strict=True):
        if not value <= LARGEST:
            raise UserError(f"{source}: {name} has a value of {value:.3g}: training diverged. {remedy}")


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: an existing file is replaced only by a complete one.

    Args:
        path: a .pth or .pt file; its folder is created.
        content: tensors, strings, numbers, None, and dicts, lists and tuples of them.

    Raises:
        UserError: for another file suffix, if the disk is too full, or if the file cannot be written.
        TypeError: for a value that cannot be loaded without running code.
    """
    path = Path(path)
    if path.suffix not in PICKLED:
        raise UserError(f"{path}: checkpoints are written as .pth or .pt.")
    _require_plain(content, "checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, _bytes(content), path.name, "Checkpoints written before are unchanged.")
    try:
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise cannot_write(path, error) from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a .safetensors file atomically.

    Args:
        path: the file, in an existing folder.
        tensors: contiguous tensors of separate storages.
        metadata: texts in the header of the file.

    Raises:
        UserError: if the disk is too full, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    require_space(path.parent, _bytes(tensors), path.name)
    try:
        with atomic_path(path) as partial:
            save_file(dict(tensors), partial, metadata)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise cannot_write(path, error) from error


def _bytes(content: Any) -> int:
    """Bytes of the tensors in a checkpoint; each storage counts once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (Mapping, list, tuple)):
            for item in value.values() if isinstance(value, Mapping) else value:
                visit(item)

    visit(content)
    return sum(storages.values())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a .pth, .pt, .pkl or .safetensors file onto the CPU without running code from it.

    If the checkpoint has no entry `classes`, the class list of the config.yaml beside it is added.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or holds more than arrays and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    if path.suffix not in (*PICKLED, *FOREIGN):
        raise UserError(f"{path}: expected a .pth, .pt, .pkl or .safetensors file.")
    try:
        content = _load(path)
    except Exception as error:  # readers fail on damaged bytes with errors of any type
        raise UserError(f"{path}: {_describe(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dict of tensors, got {type(content).__name__}.")
    if "classes" not in content:
        classes = _section(_saved_config(path), "model").get("classes")
        return content if classes is None else {**content, "classes": classes}
    return content


def _describe(error: Exception) -> str:
    """Why a checkpoint cannot be read, with a remedy."""
    text = str(error).strip()
    found = re.search(r"GLOBAL ([\w.]+)|it calls ([\w.]+)", text)
    if found:
        return (
            f"it contains {found[1] or found[2]}, which only code can read. Where it was made, save its tensors alone: "
            'torch.save({"model": model.state_dict()}, FILE).'
        )
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    reason = inner[1] if inner else text.split("\n")[0].split(". ")[0]
    reason = reason.strip()[:120] or type(error).__name__
    return f"damaged, or more than tensors and plain values ({reason}). Download or export it again."


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    if path.suffix == ".pkl":
        return load_pickle(path)
    return load_torch(path)


def find_config(weights_path: str | Path) -> Path:
    """The config.yaml beside a checkpoint.

    Raises:
        UserError: if there is none.
    """
    path = Path(weights_path).with_name("config.yaml")
    if not path.is_file():
        raise UserError(
            f"{weights_path}: no config.yaml beside it. Copy the config.yaml of its run there, or name a config."
        )
    return path


def evaluation_state(
    content: Mapping[str, Any], ema: Mapping[str, Any] | None, source: str
) -> Mapping[str, Any]:
    """The weights that evaluation and prediction use: averaged ones if the config evaluates only those.

    Args:
        content: a loaded checkpoint.
        ema: `train.model_ema`; None for that of the config.yaml beside the checkpoint.
        source: the checkpoint's path.

    Returns:
        A checkpoint for `load_weights`.

    Raises:
        UserError: if the config evaluates averaged weights and the checkpoint has none.
    """
    if ema is None:
        ema = _section(_section(_saved_config(Path(source)), "train"), "model_ema")
    if not averages_only(ema):
        return content
    if not content.get("ema_state"):
        raise UserError(
            f"{source}: no averaged weights, which its config evaluates. Set train.model_ema.enabled=false."
        )
    return {"model": content["ema_state"], "classes": content.get("classes")}


def averages_only(ema: Mapping[str, Any]) -> bool:
    """Whether a config's `train.model_ema` evaluates averaged weights instead of raw ones."""
    return bool(ema.get("enabled") and ema.get("use_ema_weights_for_eval_only"))


def _saved_config(weights_path: Path) -> Any:
    """The content of the config.yaml beside a checkpoint; {} if there is none, or if it cannot be read."""
    path = weights_path.with_name("config.yaml")
    try:
        return read_yaml(path) if path.is_file() else {}
    except UserError:
        return {}


def _section(config: Any, name: str) -> Mapping[str, Any]:
    section = config.get(name) if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


@dataclass(frozen=True)
class State:
    """Parameters and buffers of a checkpoint, by the names of this package.

    Attributes:
        tensors: by our names.
        project: the project that named them; None for this package.
        unknown: names of that project without a counterpart here.
        dropped: (name, reason) of tensors that no model of this package uses.
    """

    tensors: dict[str, Tensor]
    project: Project | None = None
    unknown: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()


def read_state(content: Mapping[str, Any], source: str = "checkpoint") -> State:
    """Extract the parameters and buffers of a checkpoint and translate their names.

    Args:
        content: a state dict, by itself, under "model" (detectron2, detrex, this package) or "state_dict", or as the
            only state dict under any other key.
        source: path of the checkpoint, for messages.

    Raises:
        UserError: if there is no tensor, or a tensor is sparse, quantised, complex or without data.
    """
    state = _find_state(content, source)
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: expected a dict under 'model', got {type(state).__name__}.")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        inside = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{source}: no tensors in it, only {inside}. Save the state dict alone, under 'model'."
        )
    for name, value in tensors.items():
        kind = _unusual(value)
        if kind:
            raise UserError(f"{source}: {name} is {kind}. Export the weights as dense real numbers.")
    tensors = _unwrap(tensors)
    project = recognise(tensors)
    if project is None:
        return State(tensors)
    reasons = {name: why for name in tensors for pattern, why in project.dropped if re.search(pattern, name)}
    used = {name: value for name, value in tensors.items() if name not in reasons}
    translation = to_ours(used, project.rows, source)
    return State(translation.state, project, translation.unknown, tuple(reasons.items()))


def _find_state(content: Mapping[str, Any], source: str) -> Any:
    """The state dict of a checkpoint; what is under "model" if it holds none."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping) and _holds_tensors(content[key]):
            return content[key]
    if _holds_tensors(content):
        return content
    states = {
        key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)
    }
    if len(states) > 1:
        names = ", ".join(map(str, states))
        raise UserError(f"{source}: several state dicts: {names}. Save the right one alone, under 'model'.")
    return next(iter(states.values()), content.get("model", content))


def _holds_tensors(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in state.values())


def _unusual(value: Tensor) -> str:
    """What kind of tensor `value` is, if it is not an ordinary one; otherwise ""."""
    if value.is_meta:
        return "a tensor without data"
    if value.is_quantized or (value.is_floating_point() and value.element_size() == 1):
        return "a quantised tensor"
    if value.layout is not torch.strided:
        return "a sparse tensor"
    return "a complex tensor" if value.is_complex() else ""


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers add to names; names are unchanged if two would become equal.

    The wrappers are DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`), Lightning (`model.`) and mean
    teachers (`teacher.`).
    """
    bare = {
        re.sub(r"^((module|model|teacher)\.)+", "", name.replace("_orig_mod.", "")): v
        for name, v in tensors.items()
    }
    return bare if len(bare) == len(tensors) else tensors


#: Tensors of pre-training that video training does not use, with the reason.
_PRETRAINING_ONLY = {
    "tracker.first_frame.embed.weight": "learned queries of pre-training, replaced by a video's local queries"
}


def load_weights(
    model: nn.Module,
    state: Mapping[str, Any],
    strict: bool = True,
    source: str = "checkpoint",
    partial: bool = False,
) -> LoadReport:
    """Load a checkpoint into a model; the model is unchanged if this raises.

    Rows of the class heads are matched by class name if the checkpoint names its classes.  Heads trained on COCO, by
    another project or (without `strict`) in pre-training, are matched by the COCO map.

    Args:
        model: the model; `model.classes` lists its classes.
        state: a loaded checkpoint or a state dict, by our names or another project's.
        strict: require every tensor of the model and every class; unexpected tensors are only reported.
        source: path of the checkpoint, for messages.
        partial: without `strict`, also accept a part of the model that is filled incompletely.

    Raises:
        UserError: if a weight is not finite or too large, or the checkpoint belongs to another model (see `strict`).
            Without `strict`, if no tensor fits or a part of the model is filled incompletely, unless `partial`.
    """
    read, ours = read_state(state, source), model.state_dict()
    try:
        theirs, reshaped, notes = _match_classes(read, state, model, ours, strict)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    unused = tuple(
        (name, why) for name, why in _PRETRAINING_ONLY.items() if name in theirs and name not in ours
    )
    shared = [name for name in ours if name in theirs]
    fits = [name for name in shared if theirs[name].shape == ours[name].shape]
    report = LoadReport(
        loaded=tuple(fits),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=(
            *(name for name in theirs if name not in ours and name not in _PRETRAINING_ONLY),
            *read.unknown,
        ),
        mismatched=tuple(
            (name, tuple(ours[name].shape), tuple(theirs[name].shape))
            for name in shared
            if theirs[name].shape != ours[name].shape
        ),
        reshaped=reshaped,
        dropped=(*read.dropped, *unused),
        project=None if read.project is None else read.project.name,
        notes=notes,
    )
    if not fits or (strict and (report.missing or report.mismatched)):
        raise UserError(f"{source}: {report.refusal()}")
    if not (strict or partial) and report.half_loaded:
        raise UserError(f"{source}: {report.partial_refusal()}")
    check_weights({name: theirs[name] for name in fits}, source, "Use weights that were saved before.")
    model.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    return report


def _match_classes(
    read: State, content: Mapping[str, Any], model: nn.Module, ours: Mapping[str, Tensor], strict: bool
) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The checkpoint's tensors with class-head rows in the model's order, the re-mapped heads, and notes."""
    heads = [name for name in CLASS_HEADS if name in read.tensors and name in ours]
    if not heads:
        return read.tensors, (), ()
    classes: Sequence[Mapping[str, Any]] = getattr(model, "classes", ())
    foreign = read.project is not None
    names = None if foreign else _class_names(content)
    other_size = any(read.tensors[name].shape[0] != ours[name].shape[0] for name in heads)
    coco = foreign or (not strict and other_size)
    rows, how = match_rows(len(read.tensors[heads[0]]), names, classes, coco)
    if rows is None:
        unknown = names is None and classes and not foreign and not other_size
        note = "the checkpoint does not name its classes: rows of the class heads were loaded in order"
        return read.tensors, (), (note,) if unknown else ()
    if strict and not foreign:
        require_all(rows, classes)
    return *remap_heads(read.tensors, ours, rows, how), ()


def _class_names(content: Mapping[str, Any]) -> list[str] | None:
    """The class names of a checkpoint, in the order of the rows; None if it does not name its classes."""
    classes = content.get("classes")
    if not (isinstance(classes, Sequence) and not isinstance(classes, str) and classes):
        return None
    if not all(isinstance(entry, Mapping) and "name" in entry for entry in classes):
        return None
    return [str(entry["name"]) for entry in classes]


def to_detrex(state: Mapping[str, Tensor]) -> Translation:
    """A model's tensors by the names of detrex's MaskDINO, which loads them strictly; the tracker is left out."""
    layers = {int(name.split(".")[3]) for name in state if name.startswith("segmenter.decoder.layers.")}
    translation = to_theirs(state, DETREX.rows, copies=len(layers))
    constant = torch.ones(len(state["segmenter.class_embed.bias"]) + 1)
    constant[-1] = 0.1  # detrex's loss weight of the class "no object"
    return Translation({**translation.state, "criterion.empty_weight": constant}, translation.unknown)


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
