"""Hooks that run after every training step: logging, checkpoints, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..errors import UserError
from ..weights.checkpoint import check_weights, save_checkpoint
from .evaluation import evaluate, evaluates, results_config, share_dataset
from .metrics import flatten, print_table
from .processes import barrier, gather, rank, reduce
from .rng import preserve_random_state
from .run_folder import FINAL, has_scores, register_checkpoint
from .trainer import Trainer

Hook = Callable[[Trainer], None]


def log_progress(trainer: Trainer) -> None:
    """Log losses (mean over processes) and speed every `train.log_period` iterations and at the end."""
    done = trainer.iteration + 1
    if trainer.log is not None:
        trainer.log.advance(trainer.iteration)
    if done % trainer.settings.log_period and done != trainer.max_iter:
        return
    measured, trainer.measured = trainer.measured, {}
    losses: dict[str, Tensor] = measured["losses"]
    means = reduce([float(value) for value in losses.values()], trainer.device, "mean")
    if trainer.log is None:
        return
    seconds = measured["seconds"] / measured["steps"]
    values = dict(zip(losses, means, strict=True))
    values["lr"] = max(group["lr"] for group in trainer.optimizer.param_groups)
    values |= {"time": seconds, "data_time": measured["data_time"] / measured["steps"]}
    values["eta_seconds"] = seconds * (trainer.max_iter - done)
    skipped = getattr(trainer.loader, "skipped", None)
    if skipped:
        values["skipped_clips"] = float(sum(skipped.values()))
    if measured["norm"] is not None:
        values["grad_norm"] = float(measured["norm"])
    if trainer.device.type == "cuda":
        values["memory_mb"] = torch.cuda.max_memory_allocated(trainer.device) / 2**20
    trainer.log.write(trainer.iteration, values)


def save_periodically(trainer: Trainer) -> None:
    """Save `model_<iteration>.pth` every `train.checkpointer.period` iterations, `model_final.pth` at the end."""
    done = trainer.iteration + 1
    if done % trainer.settings.checkpointer.period == 0:
        save(trainer)
    if done == trainer.max_iter:
        save(trainer, FINAL)


def save_missing_final(trainer: Trainer) -> None:
    """Save `model_final.pth` of a finished run that was killed between its last checkpoint and this file."""
    if not gather((trainer.folder / FINAL).is_file())[0]:
        save(trainer, FINAL)


def save(trainer: Trainer, name: str = "") -> str:
    """Save a checkpoint of the last finished iteration.

    Args:
        trainer: the run; all processes must make this call.
        name: the file's name; by default `model_<iteration>.pth`.

    Returns:
        The file's name.

    Raises:
        UserError: if a weight is not finite or larger than `checkpoint.LARGEST`, or the file cannot be written.
    """
    name = name or f"model_{trainer.iteration:07d}.pth"
    content = trainer.state()
    for key in ("model", "ema_state"):
        check_weights(content[key] or {}, f"iteration {trainer.iteration}: {key}", "Lower optimizer.lr.")
    if rank() == 0:
        if not trainer.folder.is_dir():
            raise UserError(f"{trainer.folder}: the output folder was deleted, so {name} cannot be written")
        save_checkpoint(trainer.folder / name, content)
        register_checkpoint(trainer.folder, name, trainer.settings.checkpointer.max_to_keep)
    barrier()
    return name


def evaluate_periodically(trainer: Trainer) -> None:
    """Evaluate every `train.eval_period` iterations (0: never) and at the end.

    With a weight average, its scores are logged as `ema_<task>` and its files go to the folder `ema` inside the
    evaluator's `output_dir`.

    Raises:
        InterruptedEvaluation: on all processes, after a signal.
    """
    done, period = trainer.iteration + 1, trainer.settings.eval_period
    if not evaluates(trainer.cfg) or (done < trainer.max_iter and (not period or done % period)):
        return
    with (
        preserve_random_state(trainer.device),
        trainer.log.paused() if trainer.log is not None else nullcontext(),
    ):
        run = partial(evaluate, progress=trainer.console, stop=lambda: trainer.interruption.requested)
        cfg = share_dataset(trainer.cfg)
        scores = run(cfg, trainer.model)
        if trainer.average is not None:
            with trainer.average.applied(trainer.model):
                averaged = run(results_config(cfg, True), trainer.model)
            scores |= {f"ema_{name}": value for name, value in averaged.items()}
        if trainer.log is not None:
            # The scores of a finished run that is resumed are in the log.
            if not has_scores(trainer.folder, trainer.iteration):
                trainer.log.write(trainer.iteration, flatten(scores))
            print_table(scores, trainer.console)
    trainer.scores = scores


HOOKS: tuple[Hook, ...] = (log_progress, save_periodically, evaluate_periodically)
