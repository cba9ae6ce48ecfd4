"""Standalone train and evaluate loops: the contract and config keys of detrex's trainer, on CPU and GPU.

The engine knows what a trainer must know and never the model.  In training `model(batch)` gives a dict of
losses, all summed; in evaluation it gives what `dataloader.evaluator` reads.  Iterations count from 0; a
checkpoint holds the last finished one, and everything that the next one depends on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from ..errors import UserError
from ..weights.checkpoint import load_checkpoint, load_weights, save_checkpoint
from .metrics import RunLog, counted, flatten, print_table
from .processes import barrier, join, rank, reduce
from .run import (
    build,
    keep_random_state,
    last_checkpoint,
    load_last,
    pick_seed,
    record_run,
    register_checkpoint,
    require,
    seed_all,
    train_settings,
)
from .trainer import Trainer

Hook = Callable[[Trainer], None]


def log_progress(trainer: Trainer) -> None:
    """Every `train.log_period` iterations and at the end: the latest losses (process mean), the pace."""
    done = trainer.iteration + 1
    if trainer.log is not None:
        trainer.log.advance(trainer.iteration)
    if done % trainer.settings.log_period and done != trainer.max_iter:
        return
    kept, trainer.measured = trainer.measured, {}
    losses: dict[str, Tensor] = kept["losses"]
    means = reduce([float(value) for value in losses.values()], trainer.device, "mean")
    if trainer.log is None:
        return
    pace = kept["seconds"] / kept["steps"]
    values = dict(zip(losses, means, strict=True))
    values["lr"] = max(group["lr"] for group in trainer.optimizer.param_groups)
    values |= {"time": pace, "data_time": kept["waited"] / kept["steps"]}
    values["eta_seconds"] = pace * (trainer.max_iter - done)
    skipped = getattr(trainer.loader, "skipped", None)
    if skipped:
        values["skipped_clips"] = float(sum(skipped.values()))
    if kept["norm"] is not None:
        values["grad_norm"] = float(kept["norm"])
    if trainer.device.type == "cuda":
        values["memory_mb"] = torch.cuda.max_memory_allocated(trainer.device) / 2**20
    trainer.log.write(trainer.iteration, values)


def save_periodically(trainer: Trainer) -> None:
    """`model_<iteration>.pth` every `train.checkpointer.period` iterations, `model_final.pth` at the end."""
    done = trainer.iteration + 1
    if done % trainer.settings.checkpointer.period == 0:
        save(trainer)
    if done == trainer.max_iter:
        save(trainer, "model_final.pth")


def save(trainer: Trainer, name: str = "") -> str:
    """Write a checkpoint of the last finished iteration, named after it unless `name` is given; its name."""
    name = name or f"model_{trainer.iteration:07d}.pth"
    content = trainer.state()
    if rank() == 0:
        save_checkpoint(trainer.folder / name, content)
        register_checkpoint(trainer.folder, name, trainer.settings.checkpointer.max_to_keep)
    barrier()
    return name


def evaluate_periodically(trainer: Trainer) -> None:
    """Scores every `train.eval_period` iterations (0: none) and at the end; averaged weights' as ema_*."""
    done, period = trainer.iteration + 1, trainer.settings.eval_period
    if "evaluator" not in trainer.cfg.dataloader or (
        done < trainer.max_iter and (not period or done % period)
    ):
        return
    with (
        keep_random_state(trainer.device),
        trainer.log.paused() if trainer.log is not None else nullcontext(),
    ):
        scores = evaluate(trainer.cfg, trainer.model, progress=trainer.console)
        if trainer.average is not None:
            with trainer.average.applied(trainer.model):
                averaged = evaluate(trainer.cfg, trainer.model, progress=trainer.console)
            scores |= {f"ema_{name}": value for name, value in averaged.items()}
        if trainer.log is not None:
            trainer.log.write(trainer.iteration, flatten(scores))
            print_table(scores, trainer.console)
    trainer.scores = scores


HOOKS: tuple[Hook, ...] = (log_progress, save_periodically, evaluate_periodically)


def train(cfg: DictConfig, *, resume: bool = False, progress: Console | None = None) -> dict[str, Any]:
    """Train `cfg.model`; under torchrun, as one of several processes.

    Args:
        cfg: `model, optimizer, lr_multiplier, dataloader.{train,test,evaluator}, train`; it is not changed.
        resume: continue exactly from the newest checkpoint in `train.output_dir`; without one, start anew.
        progress: the console to report on; the standard error by default.

    Returns:
        the last evaluation's scores, {task: {name: number}}; empty on other processes than the first.

    Raises:
        UserError: for a `train` key that is unknown or can't be honoured, weights that don't fit, a loss that
            is not finite.
        KeyboardInterrupt: once the checkpoint is saved, after Ctrl-C or a termination signal.
    """
    require(cfg, "model", "optimizer.params", "lr_multiplier", "dataloader.train", "train")
    cfg = copy.deepcopy(cfg)
    settings = train_settings(cfg)
    folder = Path(settings.output_dir)
    with ExitStack() as stack:
        device = join(settings.device)
        console = (
            (progress or Console(stderr=True)) if rank() == 0 else Console(quiet=True, force_terminal=False)
        )
        newest = last_checkpoint(folder) if resume else None
        content = load_last(newest) if newest else None
        settings.seed = pick_seed(settings.seed, content)
        seed_all(settings.seed)
        trainer = Trainer(cfg, device, console)
        report = ""
        if content is None:
            report = trainer.initialize()
        else:
            trainer.resume(content, str(newest))
            console.print(f"resuming {newest} at iteration {trainer.start}", highlight=False, soft_wrap=True)
        if rank() == 0:
            # only now, when nothing can be refused any more: an earlier run in this folder loses its place
            record_run(folder, cfg, resumed=content is not None)
            if report:
                (folder / "load_report.txt").write_text(report)
            wandb = settings.wandb.params if settings.wandb.enabled else None
            trainer.log = stack.enter_context(
                RunLog(folder, trainer.iteration, trainer.max_iter, console, wandb)
            )
        stack.enter_context(trainer.interruption)
        if trainer.start >= trainer.max_iter:
            console.print(f"nothing left to train: {trainer.start} of {trainer.max_iter} iterations are done")
            evaluate_periodically(trainer)
        trainer.run(HOOKS, content["random"] if content is not None else None)
        if trainer.interruption.agreed and trainer.iteration + 1 < trainer.max_iter:
            console.print(f"interrupted; {folder / save(trainer)} is saved. Continue with --resume.")
            raise KeyboardInterrupt
    return trainer.scores


def load_model(cfg: DictConfig, device: torch.device | str = "cpu") -> nn.Module:
    """`cfg.model` with the weights of `train.init_checkpoint`, averaged ones if the config evaluates those.

    Raises:
        UserError: if there are no weights, or they are another model's.
    """
    settings = cfg.train
    if not settings.get("init_checkpoint"):
        raise UserError(
            "train.init_checkpoint is empty: evaluation needs weights. Add train.init_checkpoint=FILE."
        )
    content = load_checkpoint(settings.init_checkpoint)
    model: nn.Module = build(cfg, "model")
    ema = settings.get("model_ema") or {}
    if ema.get("enabled") and ema.get("use_ema_weights_for_eval_only"):
        if not content.get("ema_state"):
            raise UserError(
                f"{settings.init_checkpoint}: no averaged weights. Add train.model_ema.enabled=False."
            )
        content = content["ema_state"]
    load_weights(model, content, source=str(settings.init_checkpoint))
    return model.to(device)


def evaluate(
    cfg: DictConfig, model: nn.Module | None = None, *, progress: Console | None = None
) -> dict[str, Any]:
    """Run a model on `cfg.dataloader.test`, score it with `cfg.dataloader.evaluator`; each process its share.

    Args:
        cfg: the whole config.
        model: on its device, not wrapped; by default `load_model(cfg)`.
        progress: the console to report on; the standard error by default.

    Returns:
        {task: {name: number}} and {"speed": {"frames_per_second": ...}} of all processes together, reading
        included; empty on other processes than the first.
    """
    require(cfg, "model", "dataloader.test", "dataloader.evaluator", "train")
    device = join(cfg.train.get("device", "cpu"))
    model = load_model(cfg, device) if model is None else model
    loader, evaluator = build(cfg, "dataloader.test"), build(cfg, "dataloader.evaluator")
    evaluator.reset()
    modes = {module: module.training for module in model.modules()}
    frames, begin = 0, time.perf_counter()
    try:
        model.eval()
        console = progress or Console(stderr=True)
        with torch.no_grad(), counted(loader, "evaluate", console, quiet=rank() > 0) as batches:
            for batch in batches:
                evaluator.process(batch, model(batch))
                frames += sum(len(clip) for clip in batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    # the slowest process decides when all are done
    (total,) = reduce([frames], device)
    (seconds,) = reduce([time.perf_counter() - begin], device, "max")
    scores = dict(evaluator.evaluate() or {})
    barrier()
    if rank() == 0:
        scores["speed"] = {"frames_per_second": total / max(seconds, 1e-9)}
    return scores
