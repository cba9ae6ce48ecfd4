"""Training loop with the contract and the config keys of detrex's trainer, on CPU and GPU.

In training, `model(batch)` returns a dict of losses, which are summed.  In evaluation it returns the input of
`dataloader.evaluator`.  Iterations count from 0; a checkpoint holds the last finished iteration and all state that
the next one depends on.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from ..errors import UserError
from ..files import write_text
from .evaluation import evaluate, evaluates, load_model
from .hooks import HOOKS, evaluate_periodically, save, save_missing_final
from .interruption import InterruptedEvaluation
from .metrics import RunLog
from .processes import gather, join, peer_errors, rank
from .rng import pick_seed, seed_all
from .run_folder import has_run, has_scores, last_checkpoint, load_last, lock_run, record_run
from .settings import require, train_settings
from .start import FirstIteration, describe
from .trainer import Trainer

__all__ = ["evaluate", "load_model", "train"]


def checked(cfg: DictConfig) -> DictConfig:
    """A copy of a config with all keys of `train`, after a check of every part that a training reads.

    Raises:
        UserError: if a part is missing, or a value has the wrong type or is out of range.
    """
    scored = ("dataloader.test", "dataloader.evaluator") if evaluates(cfg) else ()
    parts = ("model", "optimizer", "optimizer.params", "lr_multiplier", "dataloader.train", "train")
    require(cfg, *parts, *scored)
    cfg = copy.deepcopy(cfg)
    train_settings(cfg)
    return cfg


def train(
    cfg: DictConfig, *, resume: bool = False, overwrite: bool = False, progress: Console | None = None
) -> dict[str, Any]:
    """Train `cfg.model`; under torchrun, as one of several processes.

    Args:
        cfg: `model, optimizer, lr_multiplier, dataloader.{train,test,evaluator}, train`; not modified.
        resume: continue from the newest checkpoint in `train.output_dir`, with identical results to an uninterrupted
            run; without a checkpoint, start from iteration 0.
        overwrite: replace an earlier run in `train.output_dir`; excludes `resume`.
        progress: console for messages; standard error by default.

    Returns:
        Scores of the last evaluation, {task: {name: number}}; {} on other processes than the first.

    Raises:
        UserError: for an invalid `train` setting, an earlier run in the folder, a process that writes to it, weights
            that do not fit, or a loss that is not finite.
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGUSR2, once the checkpoint is saved; its argument is the signal
            that this process received, if any.
    """
    if resume and overwrite:
        raise UserError(
            "--resume continues the run in the output folder, --overwrite replaces it: give one of them."
        )
    cfg = checked(cfg)
    settings = cfg.train
    first_iteration = FirstIteration()
    folder = Path(settings.output_dir)
    with ExitStack() as stack:
        stack.enter_context(peer_errors(folder))
        device = join(settings.device)
        console = progress or Console(stderr=True)
        if rank() > 0:
            console = Console(quiet=True, force_terminal=False)
        stack.enter_context(lock_run(folder))
        if gather(has_run(folder))[0] and not (resume or overwrite):
            raise UserError(
                f"{folder}: holds an earlier run. Continue it with --resume, replace it with --overwrite, or choose "
                "another train.output_dir."
            )
        newest = last_checkpoint(folder) if resume else None
        content = load_last(newest) if newest else None
        settings.seed = pick_seed(settings.seed, content)
        seed_all(settings.seed)
        trainer = Trainer(cfg, device, console)
        source, report = str(newest or ""), None
        if content is None:
            source, report = trainer.initialize()
        else:
            trainer.resume(content, source)
        console.print("\n".join(describe(trainer, source, report)), highlight=False, soft_wrap=True)
        if rank() == 0:
            # All checks are done: only now may files of an earlier run in this folder be replaced.
            record_run(folder, cfg, resumed=content is not None)
            if report is not None:
                lines = [f"weights of {source}:", *report.summary()]
                write_text(folder / "load_report.txt", "\n".join(lines) + "\n")
            wandb = settings.wandb.params if settings.wandb.enabled else None
            trainer.log = stack.enter_context(
                RunLog(folder, trainer.iteration, trainer.max_iter, console, wandb)
            )
        stack.enter_context(trainer.interruption)
        _run(trainer, content, first_iteration)
    return trainer.scores


def _run(trainer: Trainer, content: dict[str, Any] | None, first_iteration: FirstIteration) -> None:
    """Train and evaluate from the state of a checkpoint, or from the start.

    Raises:
        KeyboardInterrupt: after a signal, when a checkpoint is saved.
    """
    try:
        if trainer.start >= trainer.max_iter:
            trainer.console.print(
                f"nothing left to train: {trainer.start} of {trainer.max_iter} iterations are done"
            )
            save_missing_final(trainer)
            evaluate_periodically(trainer)
        elif content is not None and not gather(has_scores(trainer.folder, trainer.iteration))[0]:
            # The run was killed during an evaluation, which follows the checkpoint.
            evaluate_periodically(trainer)
        trainer.run((first_iteration, *HOOKS), content["random"] if content is not None else None)
    except InterruptedEvaluation:
        trainer.interruption.agreed = True
        if trainer.iteration + 1 == trainer.max_iter:
            trainer.console.print("interrupted in the last evaluation; repeat it with --resume.")
            raise KeyboardInterrupt(trainer.interruption.received) from None
    if trainer.interruption.agreed and trainer.iteration + 1 < trainer.max_iter:
        trainer.console.print(f"interrupted; saved {trainer.folder / save(trainer)}. Continue with --resume.")
        raise KeyboardInterrupt(trainer.interruption.received)
