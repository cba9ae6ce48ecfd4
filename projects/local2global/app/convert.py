"""Weights from one project's names to another's: `l2g convert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ..config.find import find_config_file
from ..errors import UserError, make_folder
from ..lazy import apply_overrides, instantiate, load_config, load_resolved, save_resolved, variants_of
from ..weights import class_heads as coco
from ..weights.checkpoint import (
    LoadReport,
    find_config,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    to_detrex,
)

#: MaskDINO's own number of queries; the weights do not depend on it.
QUERIES = 300
_BYPASS = "model.tracker=bypass"


def image_config(content: Mapping[str, Any], source: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a released image segmenter's own model, its classes and sizes read off the weights.

    Args:
        content: what `load_checkpoint` gave.
        source: where it comes from, the beginning of every complaint.
        overrides: changes to it; one of them must choose a tracker that has no weights.

    Raises:
        UserError: if the weights are no whole MaskDINO, or no such tracker is chosen.
    """
    state = read_state(content, source)
    if state.project is None or state.project.name != "MaskDINO":
        name = state.project.name if state.project else "unknown"
        raise UserError(
            f"{source}: {name} weights are not a whole model. Name one with l2g convert --config."
        )
    if _BYPASS not in overrides:
        raise UserError(
            f"{source}: {state.project.name}'s weights know images: add {_BYPASS} "
            "(identities are then matched, not learned)."
        )
    swin = "segmenter.backbone.patch_embed.proj.weight" in state.tensors
    cfg = load_config(find_config_file(f"common/models/l2g_{'swinl' if swin else 'r50'}.py"))
    sizes = _sizes(state.tensors)
    cfg.model.classes = sizes.pop("classes")
    for key, value in sizes.items():
        apply_overrides(cfg, [f"model.segmenter.{key}={value}"])
    return apply_overrides(cfg, overrides, known_variants())


def known_variants() -> Mapping[str, Mapping[str, Any]]:
    """What one word stands for in an override of a model's config."""
    return variants_of(find_config_file("common/variants.py"))


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the weights say of the model."""
    rows = len(tensors["segmenter.class_embed.bias"])
    names = [name.split(".") for name in tensors]
    classes = [{"id": i, "name": name} for i, name in coco.THINGS.items()]
    if rows == coco.PANOPTIC_ROWS:
        classes += [{"id": i, "name": name} for i, name in coco.STUFF.items()]
    elif rows != coco.INSTANCE_ROWS:
        classes = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(rows)]
    found: dict[str, Any] = {"classes": classes, "num_queries": QUERIES}
    for part in ("encoder", "decoder"):
        layers = {int(name[3]) for name in names if name[1:3] == [part, "layers"]}
        wide = tensors[f"segmenter.{part}.layers.0.ffn.linear1.bias"]
        found |= {f"{part}.num_layers": len(layers), f"{part}.dim_feedforward": len(wide)}
    return found


def convert(
    weights: Path,
    output: Path,
    config: str | None,
    overrides: Sequence[str],
    to: str = "ours",
    partial: bool = False,
) -> Iterator[str]:
    """Convert, and say in lines what became of the weights.

    Args:
        weights: the file to read.
        output: a folder (model_final.pth, config.yaml, load_report.txt), or for detrex's names the .pth to write.
        config: a config that describes the model to fill; a released MaskDINO's own, linked by `bypass`, if None.
        overrides: changes to the config.
        to: "ours" or "detrex".
        partial: accept parts of the model that are filled incompletely.

    Raises:
        UserError: if the weights do not fit.
    """
    content, source = load_checkpoint(weights), str(weights)
    if to == "detrex":
        yield from _to_detrex(content, output, source)
        return
    if to != "ours":
        raise UserError(f"--to {to}: expected ours or detrex.")
    if config is not None:
        cfg = load_config(find_config_file(config), overrides)
    elif read_state(content, source).project is None:
        cfg = load_resolved(find_config(weights), ("model",))
        apply_overrides(cfg, overrides, known_variants())
    else:
        cfg = image_config(content, source, [*overrides, _BYPASS])
    model = instantiate(cfg.model)
    report: LoadReport = load_weights(model, content, strict=False, source=source, partial=partial)
    make_folder(output, "--output")
    save_resolved(DictConfig({"model": cfg.model}, flags={"allow_objects": True}), output / "config.yaml")
    (output / "load_report.txt").write_text("\n".join([f"weights of {source}:", *report.summary()]) + "\n")
    save_checkpoint(output / "model_final.pth", {"model": model.state_dict()})
    yield from report.summary()
    yield f"written to {output / 'model_final.pth'}"


def _to_detrex(content: Mapping[str, Any], output: Path, source: str) -> Iterator[str]:
    found = to_detrex(read_state(content, source).tensors)
    save_checkpoint(output, {"model": found.state})
    yield f"{len(found.state)} tensors by detrex's names"
    if found.unknown:
        yield f"{len(found.unknown)} left out, which detrex's MaskDINO has no place for: {found.unknown[0]}, ..."
    yield f"written to {output}"
