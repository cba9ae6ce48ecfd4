"""Files in the output folder of a run: checkpoints, the `last_checkpoint` pointer, config.yaml, versions.json."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from .. import __version__
from ..config.saved import EVALUATOR_FOLDER, read_yaml, resolve
from ..errors import UserError
from ..files import locked_folder, write_text
from ..lazy import save_resolved
from ..weights.checkpoint import load_checkpoint
from ..weights.find import marked_checkpoint
from .metrics import read_entries
from .processes import gather, join, rank, world_size

FINAL = "model_final.pth"


@contextmanager
def lock_run(folder: Path, setting: str = "train.output_dir") -> Iterator[None]:
    """Lock an output folder; the first process holds the lock, and its error is raised on all processes."""
    message = ""
    with ExitStack() as stack:
        if rank() == 0:
            try:
                stack.enter_context(locked_folder(folder, setting))
            except UserError as error:
                message = str(error)
        message = gather(message)[0]
        if message:
            raise UserError(message)
        yield


@contextmanager
def lock_results(cfg: DictConfig) -> Iterator[None]:
    """Lock the folder to which an evaluation outside of a training writes its results.

    It is the run's folder if the results lie inside, so that no training writes scores there at the same time.
    """
    folder = OmegaConf.select(cfg, EVALUATOR_FOLDER)
    if not isinstance(folder, (str, Path)):
        yield
        return
    run = OmegaConf.select(cfg, "train.output_dir")
    inside = isinstance(run, (str, Path)) and Path(folder).resolve().is_relative_to(Path(run).resolve())
    join(cfg.train.get("device", "cpu"))
    with lock_run(Path(run if inside else folder), "train.output_dir" if inside else EVALUATOR_FOLDER):
        yield


def has_run(folder: Path) -> bool:
    """Whether the folder holds checkpoints or metrics of a run."""
    names = ("last_checkpoint", "metrics.jsonl", FINAL)
    return any((folder / name).is_file() for name in names) or bool(numbered_checkpoints(folder))


def refuse_run(folder: Path, setting: str) -> None:
    """Check that an output folder of another command holds no training run, whose files it would replace.

    Args:
        folder: the folder, which may not exist.
        setting: the option that selects another folder, such as "--output".

    Raises:
        UserError: if it does.
    """
    if any((folder / name).exists() for name in ("last_checkpoint", "metrics.jsonl")):
        raise UserError(f"{folder}: holds a training run. Choose another folder with {setting}.")


def is_run_of(folder: Path, cfg: DictConfig) -> bool:
    """Whether the folder holds a run with the model and the data of a config."""
    path = folder / "config.yaml"
    saved = read_yaml(path) if has_run(folder) and path.is_file() else None
    if not isinstance(saved, dict):
        return False
    return all(saved.get(key) == resolve(cfg.get(key)) for key in ("model", "dataloader"))


def has_scores(folder: Path, iteration: int) -> bool:
    """Whether metrics.jsonl has scores of an iteration, which are named `task/score`."""
    entries = read_entries(folder / "metrics.jsonl")
    return any(entry["iteration"] == iteration and any("/" in name for name in entry) for entry in entries)


def read_versions(folder: Path) -> dict[str, Any]:
    """The content of a run's versions.json; {} if it is missing or damaged."""
    try:
        content = json.loads((folder / "versions.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint named in the text file `last_checkpoint`, or the newest one if there is no such file.

    A run that is killed between the two files has a checkpoint without the text file.

    Returns:
        its path, which may not exist; None for a folder without checkpoints.

    Raises:
        UserError: if `last_checkpoint` is damaged.
    """
    files = [*numbered_checkpoints(folder), *(path for path in (folder / FINAL,) if path.is_file())]
    return marked_checkpoint(folder) or max(files, key=_age, default=None)


#: Entries of a checkpoint that a resumed run needs, and their types.
_STATE: dict[str, type] = {
    "model": Mapping,
    "optimizer": Mapping,
    "iteration": int,
    "scaler": Mapping,
    "random": list,
}


def load_last(path: Path) -> dict[str, Any]:
    """Load the checkpoint to resume from.

    Raises:
        UserError: if it cannot be read or is no state of a training; the message names the previous checkpoint, if
            there is one.
    """
    try:
        content = load_checkpoint(path)
        missing = [key for key in _STATE if key not in content]
        if missing:
            raise UserError(
                f"{path}: cannot resume, the checkpoint has no {', '.join(missing)}. "
                "Use it as train.init_checkpoint instead."
            )
        seed = content.get("seed", 0)
        wrong = [key for key, kind in _STATE.items() if not isinstance(content[key], kind)]
        wrong += [
            key
            for key, value in (("iteration", content["iteration"]), ("seed", seed))
            if not _is_count(value)
        ]
        if wrong:
            raise UserError(f"{path}: cannot resume, its '{wrong[0]}' is damaged.")
        return content
    except UserError as error:
        older = [file.name for file in numbered_checkpoints(path.parent) if file.name != path.name]
        hint = f" To resume from {older[-1]}, write that name into {path.parent / 'last_checkpoint'}."
        raise UserError(f"{error}{hint if older else ''}") from error


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The periodic checkpoints of a folder, oldest first."""
    # Sorted by time: a run resumed from an older checkpoint leaves higher iteration numbers behind.
    return sorted(folder.glob("model_" + "[0-9]" * 7 + ".pth"), key=_age)


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def register_checkpoint(folder: Path, name: str, max_to_keep: int | None) -> None:
    """Point `last_checkpoint` at `name` and delete the oldest periodic checkpoints beyond `max_to_keep`."""
    write_text(folder / "last_checkpoint", name)
    numbered = numbered_checkpoints(folder)
    for old in numbered[:-max_to_keep] if max_to_keep else ():
        old.unlink()


def record_run(folder: Path, cfg: DictConfig, resumed: bool) -> None:
    """Write config.yaml and versions.json; unless `resumed`, delete the checkpoints and records of an earlier run."""
    if not resumed:
        for name in ("last_checkpoint", "metrics.jsonl", "load_report.txt", FINAL):
            (folder / name).unlink(missing_ok=True)
        for path in (*numbered_checkpoints(folder), *folder.glob("events.out.tfevents.*")):
            path.unlink()
    save_resolved(cfg, folder / "config.yaml")
    script = "l2g" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]
    versions = {
        "local2global": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": _commit(),
        "seed": cfg.train.seed,
        "command": shlex.join([script, *sys.argv[1:]]),
        "hardware": _hardware(torch.device(cfg.train.device)),
    }
    write_text(folder / "versions.json", json.dumps(versions, indent=2) + "\n")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{world_size()} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()}-core CPU"


def _commit() -> str | None:
    # Restricted to this folder: an installed package may lie inside an unrelated repository.
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%H", "--", "."]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
