"""A run's frame: its settings, its folder, its seed and random states, and how it ends before its time."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from .. import __version__
from ..errors import UserError, make_folder
from ..lazy import instantiate, save_resolved
from ..weights.checkpoint import load_checkpoint
from .processes import gather, world_size

# Every key the trainer honours, with the values of a config that leaves it out; detrex's, and our `accumulate`
# and `init_partial`.
DEFAULTS: dict[str, Any] = {
    "output_dir": "./output",
    "init_checkpoint": "",
    "init_partial": False,
    "max_iter": 90000,
    "accumulate": 1,
    "amp": {"enabled": False, "dtype": "float16"},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "clip_grad": {"enabled": False, "params": {"max_norm": 0.1, "norm_type": 2}},
    "seed": -1,
    "fast_dev_run": {"enabled": False},
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    "eval_period": 5000,
    "log_period": 20,
    "wandb": {"enabled": False, "params": {}},
    "model_ema": {"enabled": False, "decay": 0.999, "device": "", "use_ema_weights_for_eval_only": False},
    "device": "cuda",
}
# Handed on to wandb as they are.
FREE = ("train.wandb.params",)
# Seconds in which a second signal counts as the first one again.
ECHO = 2.0
PRECISIONS = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def train_settings(cfg: DictConfig) -> DictConfig:
    """Complete `cfg.train` in place with the defaults and give it.

    Raises:
        UserError: for a key or value the trainer can't honour.
    """
    _refuse_unknown(cfg.train, DEFAULTS, "train")
    cfg.train = OmegaConf.merge(DEFAULTS, cfg.train)
    settings: DictConfig = cfg.train
    if settings.fast_dev_run.enabled:
        settings.max_iter, settings.eval_period, settings.log_period = 20, 10, 1
    _check_numbers(settings)
    if settings.amp.dtype not in PRECISIONS:
        raise UserError(f"train.amp.dtype={settings.amp.dtype}: expected one of {', '.join(PRECISIONS)}.")
    if settings.wandb.enabled and importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb.enabled: wandb is not installed. Run: pip install wandb")
    return settings


def require(cfg: DictConfig, *keys: str) -> None:
    """Refuse a config that lacks one of `keys`, dotted names of its parts.

    Raises:
        UserError: with the missing key.
    """
    for key in keys:
        node: Any = cfg
        for name in key.split("."):
            node = node[name] if isinstance(node, Mapping) and name in node else None
        if node is None:
            raise UserError(f"the config has no '{key}'; this command reads {', '.join(keys)}.")


def build(cfg: DictConfig, key: str) -> Any:
    """What the config describes under `key`.

    Raises:
        UserError: where a value in it is refused by what it is given to.
    """
    try:
        return instantiate(OmegaConf.select(cfg, key))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "" if reason.startswith(key) else f"{key}: "
        raise UserError(f"the config does not fit together: {where}{reason}") from error


def _check_numbers(settings: DictConfig) -> None:
    least = {"max_iter": 1, "accumulate": 1, "log_period": 1, "checkpointer.period": 1, "eval_period": 0}
    if settings.checkpointer.max_to_keep is not None:
        least["checkpointer.max_to_keep"] = 0
    for key, lowest in least.items():
        value = OmegaConf.select(settings, key)
        if not isinstance(value, int) or value < lowest:
            kind = "a positive whole number" if lowest else "a whole number, 0 or more"
            raise UserError(f"train.{key}={value}: expected {kind}.")
    if not isinstance(settings.seed, int):
        raise UserError(f"train.seed={settings.seed}: expected a whole number, -1 for a new one each time.")


def _refuse_unknown(given: Mapping[Any, Any], known: Mapping[str, Any], where: str) -> None:
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean '{where}.{near[0]}'?" if near else f"There are: {', '.join(known)}."
            raise UserError(f"no key '{where}.{key}'. {hint}")
        inside = f"{where}.{key}"
        if isinstance(known[key], dict) and inside not in FREE:
            if not isinstance(value, Mapping):
                raise UserError(f"{inside}={value}: expected keys {', '.join(known[key])}.")
            _refuse_unknown(value, known[key], inside)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that the text file `last_checkpoint` names, if a run left one."""
    pointer = folder / "last_checkpoint"
    return folder / pointer.read_text().strip() if pointer.is_file() else None


def load_last(newest: Path) -> dict[str, Any]:
    """The content of the checkpoint to resume from.

    Raises:
        UserError: if it cannot be read; with the one before it, if there is any.
    """
    try:
        return load_checkpoint(newest)
    except UserError as error:
        older = [file.name for file in numbered_checkpoints(newest.parent) if file.name != newest.name]
        hint = f" To go on from {older[-1]}, write that name into {newest.parent / 'last_checkpoint'}."
        raise UserError(f"{error}{hint if older else ''}") from error


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The periodic checkpoints of a folder, oldest first."""
    # by age: an earlier run in this folder may have left higher numbers
    return sorted(folder.glob("model_" + "[0-9]" * 7 + ".pth"), key=lambda file: file.stat().st_mtime_ns)


def register_checkpoint(folder: Path, name: str, max_to_keep: int | None) -> None:
    """Point `last_checkpoint` to a new file and delete the oldest numbered ones beyond `max_to_keep`."""
    _write(folder / "last_checkpoint", name)
    numbered = numbered_checkpoints(folder)
    for old in numbered[:-max_to_keep] if max_to_keep else ():
        old.unlink()


def record_run(folder: Path, cfg: DictConfig, resumed: bool) -> None:
    """Write config.yaml and versions.json into a run's folder; a new run there replaces an older one."""
    make_folder(folder, "train.output_dir")
    if not resumed:
        for name in ("last_checkpoint", "metrics.jsonl", "load_report.txt"):
            (folder / name).unlink(missing_ok=True)
    save_resolved(cfg, folder / "config.yaml")
    versions = {
        "local2global": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": _commit(),
        "seed": cfg.train.seed,
        "command": shlex.join(
            ["l2g" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0], *sys.argv[1:]]
        ),
        "hardware": _hardware(torch.device(cfg.train.device)),
    }
    _write(folder / "versions.json", json.dumps(versions, indent=2) + "\n")


def _hardware(device: torch.device) -> str:
    """How many of what the run's processes compute on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()}-core CPU"
    return f"{world_size()} x {name}" if device.type == "cuda" else name


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)


def _commit() -> str | None:
    # asks for the commit of this folder, lest a repository round an installed package be taken for ours
    command = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def pick_seed(seed: int, content: Mapping[str, Any] | None) -> int:
    """The run's seed, the same on every process: a checkpoint's, else the config's, else (-1) a new one."""
    if content is not None and "seed" in content:
        return int(content["seed"])
    fresh = int.from_bytes(os.urandom(4), "little") >> 1
    return int(gather(seed if seed >= 0 else fresh)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other people's code draws from it
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators' states as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device).cpu() if device.type == "cuda" else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside changes nothing behind it."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state)


class Interruption:
    """Ctrl-C and the termination signal as a wish, met after the running step; a second signal ends at once.

    Attributes:
        asked: this process got a signal.
        agreed: every process knows that one did.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = False
        self._since = 0.0
        self._owner = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {sign: signal.signal(sign, self._note) for sign in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # a loader's forked worker: it outlives Ctrl-C until the step is done, and ends when told to
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        # torchrun passes Ctrl-C on to processes that got it from the terminal already
        if self.asked and time.monotonic() - self._since > ECHO:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
        self._since = self._since if self.asked else time.monotonic()
        self.asked = True


def complaint_about(iteration: int, losses: Mapping[str, Tensor], batch: Any) -> str:
    """One line on losses that are not finite: which, when, and in which clips."""
    values = {name: value.item() for name, value in losses.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return (
        f"iteration {iteration}: {', '.join(bad) or 'the sum of losses is not finite'}, in clips of "
        f"{name_clips(batch)}. Nothing was saved of this step; lower optimizer.lr or look at these videos."
    )


def name_clips(batch: Any) -> str:
    """The videos and keys of a batch's clips."""
    return ", ".join(
        f"video {getattr(clip, 'video_id', '?')} (key {'/'.join(map(str, getattr(clip, 'key', ())))})"
        for clip in batch
    )


def endless(batches: Iterator[Any]) -> Iterator[Any]:
    """A loader's batches.

    Raises:
        UserError: where they end.
    """
    count = 0
    for batch in batches:
        count += 1
        yield batch
    raise UserError(f"dataloader.train ended after {count} batches; it must be endless.")
