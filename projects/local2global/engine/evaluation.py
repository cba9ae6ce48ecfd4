"""Evaluation: run a model on the test set and score its outputs with the config's evaluator."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from torch import nn

from ..config.targets import FLAGS
from ..errors import UserError
from ..weights.checkpoint import averages_only, evaluation_state, load_checkpoint, load_weights
from ..weights.find import find_weights
from .interruption import InterruptedEvaluation
from .metrics import progress_bar
from .processes import barrier, gather, join, rank, reduce
from .settings import build, require, train_settings


def load_model(cfg: DictConfig, device: torch.device | str = "cpu") -> nn.Module:
    """Build `cfg.model` and load `train.init_checkpoint`, averaged weights if the config evaluates those.

    Raises:
        UserError: if there is no checkpoint, or it belongs to another model.
    """
    name = cfg.train.get("init_checkpoint")
    if not name:
        raise UserError(
            "train.init_checkpoint is empty: evaluation needs weights. Add train.init_checkpoint=FILE."
        )
    path = find_weights(name)
    content = load_checkpoint(path)
    model: nn.Module = build(cfg, "model")
    state = evaluation_state(content, cfg.train.get("model_ema") or {}, str(path))
    load_weights(model, state, source=str(path))
    return model.to(device)


def evaluates(cfg: DictConfig) -> bool:
    """Whether the config has an evaluator, which a training runs at its end and periodically."""
    dataloader = cfg.get("dataloader")
    return isinstance(dataloader, DictConfig) and dataloader.get("evaluator") is not None


def evaluate(
    cfg: DictConfig,
    model: nn.Module | None = None,
    *,
    progress: Console | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a model on `cfg.dataloader.test` and score it with `cfg.dataloader.evaluator`.

    With several processes, each evaluates its part of the test set.

    Args:
        cfg: the whole config.
        model: a model on its device, not wrapped in DistributedDataParallel; by default `load_model(cfg)`.
        progress: console for the progress bar; standard error by default.
        stop: asked before every batch and at the end; True ends the evaluation.

    Returns:
        {task: {name: number}} and {"speed": {"frames_per_second": ...}}, which counts all processes and includes
        data loading.  Only the first process computes scores; others return {}.

    Raises:
        InterruptedEvaluation: on all processes, if `stop` ended that of one of them.
    """
    require(cfg, "model", "dataloader.test", "dataloader.evaluator", "train")
    train_settings(cfg)  # raises for values of the wrong type
    device = join(cfg.train.get("device", "cpu"))
    if model is None:
        model = load_model(cfg, device)
        cfg = results_config(cfg)
    cfg = share_dataset(cfg)
    loader, evaluator = build(cfg, "dataloader.test"), build(cfg, "dataloader.evaluator")
    evaluator.reset()
    begin = time.perf_counter()
    with progress_bar(loader, "evaluate", progress or Console(stderr=True), quiet=rank() > 0) as batches:
        frames = process(model, takewhile(lambda _: not stop(), batches), evaluator)
    if any(gather(stop())):
        raise InterruptedEvaluation
    (total,) = reduce([frames], device)
    (seconds,) = reduce([time.perf_counter() - begin], device, "max")
    scores = dict(evaluator.evaluate() or {})
    barrier()
    if rank() == 0:
        scores["speed"] = {"frames_per_second": total / max(seconds, 1e-9)}
    return scores


def process(model: nn.Module, batches: Iterable[Any], evaluator: Any) -> int:
    """Run a model on batches of clips in evaluation mode and pass its outputs to an evaluator.

    Returns:
        The number of frames.
    """
    modes = {module: module.training for module in model.modules()}
    frames = 0
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                evaluator.process(batch, model(batch))
                frames += sum(len(clip) for clip in batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return frames


def results_config(cfg: DictConfig, averaged: bool | None = None) -> DictConfig:
    """The config whose evaluator writes the results of averaged weights to the folder `ema` in its `output_dir`.

    Args:
        cfg: the whole config.
        averaged: whether averaged weights are evaluated; by default, whether the config evaluates only those.
    """
    if averaged is None:
        averaged = averages_only(OmegaConf.select(cfg, "train.model_ema") or {})
    folder: Any = OmegaConf.select(cfg, "dataloader.evaluator.output_dir")
    if not averaged or folder is None:
        return cfg
    cfg = cfg.copy()
    cfg.dataloader.evaluator.output_dir = str(Path(folder) / "ema")
    return cfg


def share_dataset(cfg: DictConfig) -> DictConfig:
    """The config with its test dataset built, so that loaders and evaluators made of it share one dataset.

    The evaluator's truth usually describes the loader's dataset again.  Every node of the evaluator that equals its
    description refers to the same object.
    """
    dataloader = OmegaConf.select(cfg, "dataloader")
    test = dataloader.test
    description = test.get("dataset") if isinstance(test, DictConfig) else None
    if not (isinstance(description, DictConfig) and "_target_" in description):
        return cfg
    description = copy.deepcopy(description)
    dataset = build(cfg, "dataloader.test.dataset")
    shared = DictConfig({"_target_": lambda: dataset}, flags=FLAGS)
    cfg = copy.deepcopy(cfg)
    cfg.dataloader.test.dataset = shared
    _replace(cfg.dataloader.evaluator, description, shared)
    return cfg


def _replace(node: Any, description: DictConfig, replacement: DictConfig) -> None:
    """Replace every node below `node` that equals `description`."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    keys = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        # An interpolation follows the node that it refers to.
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if isinstance(node[key], DictConfig) and node[key] == description:
            node[key] = replacement
        else:
            _replace(node[key], description, replacement)
