"""`l2g convert`: converts weights between the parameter names of projects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ..config.find import find_config_file
from ..engine.run_folder import refuse_run
from ..engine.settings import build
from ..errors import UserError, make_folder
from ..files import write_text
from ..lazy import apply_overrides, load_config, load_resolved, save_resolved, variants_of
from ..weights import class_heads as coco
from ..weights.checkpoint import (
    evaluation_state,
    find_config,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    to_detrex,
)
from ..weights.find import find_weights

#: MaskDINO's number of queries; no parameter depends on it.
QUERIES = 300
#: A track that the image tracker sees on few frames is often wrong, so its score is the mean over all frames.
_IMAGES = ("model.tracker=bypass", "model.aggregate=mean")


def image_config(content: Mapping[str, Any], source: str, overrides: Sequence[str]) -> DictConfig:
    """Builds the config of a MaskDINO checkpoint; classes and layer sizes are read from the parameters.

    Args:
        content: checkpoint as returned by `load_checkpoint`.
        source: name of the checkpoint for error messages.
        overrides: config overrides.  By default, the image tracker is used, and scores are means over frames.

    Raises:
        UserError: if the checkpoint is not a complete MaskDINO.
    """
    state = read_state(content, source)
    if state.project is None or state.project.name != "MaskDINO":
        name = state.project.name if state.project else "unknown"
        raise UserError(
            f"{source}: {name} weights are not a whole model. Name one with l2g convert --config."
        )
    swin = "segmenter.backbone.patch_embed.proj.weight" in state.tensors
    cfg = load_config(find_config_file(f"common/models/l2g_{'swinl' if swin else 'r50'}.py"))
    try:
        cfg.model.classes = _classes(len(state.tensors["segmenter.class_embed.bias"]))
        sizes = _sizes(state.tensors)
    except KeyError as error:
        raise UserError(f"{source}: not a whole MaskDINO: it has no {error.args[0]}.") from error
    apply_overrides(cfg, [f"model.segmenter.{key}={size}" for key, size in sizes.items()])
    return apply_overrides(cfg, [*_IMAGES, *overrides], known_variants())


def known_variants() -> Mapping[str, Mapping[str, Any]]:
    """The words that override values may use, such as `bypass`."""
    return variants_of(find_config_file("common/variants.py"))


def _classes(rows: int) -> list[dict[str, Any]]:
    """The class list of a class head with that many rows; numbered names if it is not COCO's."""
    if rows not in (coco.INSTANCE_ROWS, coco.PANOPTIC_ROWS):
        return [{"id": i, "name": f"class {i}"} for i in range(1, rows + 1)]
    names = {**coco.THINGS, **coco.STUFF} if rows == coco.PANOPTIC_ROWS else coco.THINGS
    return [{"id": i, "name": name} for i, name in names.items()]


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Segmenter arguments that the parameters determine."""
    sizes = {"num_queries": QUERIES}
    for part in ("encoder", "decoder"):
        prefix = f"segmenter.{part}.layers."
        layers = {name.split(".")[3] for name in tensors if name.startswith(prefix)}
        hidden = len(tensors[f"{prefix}0.ffn.linear1.bias"])
        sizes |= {f"{part}.num_layers": len(layers), f"{part}.dim_feedforward": hidden}
    return sizes


def convert(
    weights: str,
    output: Path,
    config: str | None,
    overrides: Sequence[str],
    to: str = "ours",
    partial: bool = False,
) -> Iterator[str]:
    """Converts a checkpoint and yields the lines of the report.

    Averaged weights are converted if the checkpoint's config evaluates only those, as `l2g eval` and `l2g predict` do.

    Args:
        weights: the checkpoint, as for `find_weights`.
        output: folder for model_final.pth, config.yaml and load_report.txt; with `to="detrex"` the .pth file.
        config: config of the model to fill; None selects MaskDINO with the `bypass` tracker.
        overrides: config overrides.
        to: "ours" or "detrex".
        partial: accept parts of the model that are filled incompletely.

    Raises:
        UserError: if the checkpoint does not fit the model.
    """
    path = find_weights(weights)
    content, source = load_checkpoint(path), str(path)
    if to == "detrex":
        yield from _to_detrex(evaluation_state(content, None, source), output, source)
        return
    if to != "ours":
        raise UserError(f"--to {to}: expected ours or detrex.")
    if config is not None:
        cfg = load_config(find_config_file(config), overrides)
    elif read_state(content, source).project is None:
        cfg = load_resolved(find_config(path), ("model",))
        apply_overrides(cfg, overrides, known_variants())
    else:
        cfg = image_config(content, source, overrides)
    refuse_run(output, "--output")
    model = build(cfg, "model")
    state = evaluation_state(content, None, source)
    report = load_weights(model, state, strict=False, source=source, partial=partial)
    make_folder(output, "--output")
    save_resolved(DictConfig({"model": cfg.model}, flags={"allow_objects": True}), output / "config.yaml")
    write_text(output / "load_report.txt", "\n".join([f"weights of {source}:", *report.summary()]) + "\n")
    save_checkpoint(output / "model_final.pth", {"model": model.state_dict()})
    yield from report.summary()
    yield f"written to {output / 'model_final.pth'}"


def _to_detrex(content: Mapping[str, Any], output: Path, source: str) -> Iterator[str]:
    try:
        translation = to_detrex(read_state(content, source).tensors)
    except KeyError as error:
        raise UserError(f"{source}: not the weights of a whole model: it has no {error.args[0]}.") from error
    save_checkpoint(output, {"model": translation.state})
    yield f"{len(translation.state)} tensors under detrex's names"
    unknown = translation.unknown
    if unknown:
        yield f"{len(unknown)} tensors left out, unknown to detrex's MaskDINO: {unknown[0]}, ..."
    yield f"written to {output}"
