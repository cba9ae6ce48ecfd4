"""`l2g train CONFIG --slurm partition=gpu,nodes=2,gpus=8`: a training as a Slurm job, submitted by submitit.

Slurm starts one process per GPU.  Before the time limit or a preemption it sends SIGUSR2: the training saves a
checkpoint after the current step, the job is requeued, and the next start resumes from the checkpoint.  A job that
Slurm restarts after the failure of a node resumes from the last periodic checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.loop import train
from ..errors import UserError, first_line
from ..lazy import load_config

#: Whole numbers of the option and their defaults.
NUMBERS = {"nodes": 1, "gpus": 1, "cpus": 8, "minutes": 1440}
#: submitit's executors: Slurm, or processes on this machine.
CLUSTERS = ("slurm", "local")
#: Requeues after a time limit; submitit's default of 3 ends a training after three days.
REQUEUES = 1000
#: Slurm sends the signal this many seconds before the time limit; a step and a checkpoint must fit.
DELAY = 180


def parse(text: str) -> dict[str, Any]:
    """The values of `--slurm`: whole numbers of `NUMBERS`, `cluster`, and options of sbatch.

    Raises:
        UserError: for text that is not KEY=VALUE,KEY=VALUE, a repeated key, a number that is not positive, or an
            unknown cluster.
    """
    given: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = map(str.strip, part.partition("="))
        if not key or not value:
            raise UserError(f"--slurm {text}: expected KEY=VALUE, such as partition=gpu,nodes=2,gpus=8")
        if key in given:
            raise UserError(f"--slurm {text}: {key} is given twice")
        given[key] = value
    options: dict[str, Any] = {**NUMBERS, "cluster": "slurm"} | given
    if options["cluster"] not in CLUSTERS:
        raise UserError(f"--slurm cluster={options['cluster']}: expected one of {', '.join(CLUSTERS)}")
    for key in NUMBERS:
        if not str(options[key]).isdecimal() or int(options[key]) < 1:
            raise UserError(f"--slurm {key}={options[key]}: expected a positive whole number")
        options[key] = int(options[key])
    return options


@dataclass(frozen=True)
class TrainJob:
    """One process of a training inside a job.

    Attributes:
        config: path of the config.
        overrides: its overrides.
        resume: continue from the newest checkpoint.
        overwrite: replace an earlier run in the output folder.
    """

    config: str
    overrides: tuple[str, ...]
    resume: bool = False
    overwrite: bool = False

    def __call__(self) -> None:
        """Train, as one of the job's processes; exits with 1 and one line after an error caused by user input."""
        from submitit.helpers import TorchDistributedEnvironment

        environment = TorchDistributedEnvironment()
        environment.export(set_cuda_visible_devices=False, overwrite=True)
        restarted = bool(int(os.environ.get("SLURM_RESTART_COUNT", "0")))
        resume = self.resume or restarted
        try:
            train(
                load_config(self.config, self.overrides),
                resume=resume,
                overwrite=self.overwrite and not resume,
            )
        except UserError as error:
            sys.exit(f"l2g: {error}")
        except KeyboardInterrupt as error:
            if signal.SIGUSR2 not in error.args:
                sys.exit(130)
            # The first process requeues the job in submitit's handler, which calls `checkpoint`.  The other
            # processes return: an error code would end the first one before it has requeued the job.
            handler = signal.getsignal(signal.SIGUSR2)
            if environment.rank == 0 and callable(handler):
                handler(signal.SIGUSR2, None)

    def checkpoint(self) -> Any:
        """The job that runs after a requeue: it resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, resume=True, overwrite=False))


def submit(text: str, config: Path, overrides: Sequence[str], resume: bool, overwrite: bool) -> Any:
    """Submit a training.

    Args:
        text: the value of `--slurm`.  `cluster=local` runs the job on this machine, to try it out.
        config: the config file.
        overrides: its overrides.
        resume: continue from the newest checkpoint in the output folder.
        overwrite: replace an earlier run in the output folder.

    Returns:
        submitit's job.

    Raises:
        UserError: without submitit or Slurm, for an invalid option or config.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError('--slurm needs submitit. Run: pip install "local2global[cluster]"') from error
    options = parse(text)
    cfg = load_config(config, overrides)
    cluster, processes = options.pop("cluster"), options.pop("gpus")
    common = {
        "name": config.stem,
        "nodes": options.pop("nodes"),
        "tasks_per_node": processes,
        "cpus_per_task": options.pop("cpus"),
        "timeout_min": options.pop("minutes"),
    }
    if cfg.train.device != "cpu":
        common["gpus_per_node"] = processes
    specific = {f"slurm_{key}": value for key, value in options.items()}
    # The job ends when one of its processes fails, instead of waiting for the others' timeout.
    specific |= {"slurm_signal_delay_s": DELAY, "slurm_srun_args": ["--kill-on-bad-exit=1"]}
    folder = Path(cfg.train.output_dir) / "slurm"
    limit = {f"{cluster}_max_num_timeout": REQUEUES}
    try:
        executor = submitit.AutoExecutor(str(folder), cluster=cluster, **limit)
        executor.update_parameters(**common, **specific)
        return executor.submit(TrainJob(str(config.resolve()), tuple(overrides), resume, overwrite))
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        raise UserError(f"--slurm {text}: {first_line(error)}") from error
