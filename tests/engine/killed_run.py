"""Trains the fake model in forked processes that are killed at one point: python killed_run.py FOLDER.

A point is one access to a file of the run's folder: "before" opening, renaming, deleting it or creating a folder, and
"while" writing it.  The first training is not killed and lists the points.  For each point a training is killed there
and resumed.  Prints one JSON line per training: {"point", "killed", "folder"}.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402 - imported once, before the forks
from rich.console import Console  # noqa: E402

import fake_run  # noqa: E402
from local2global.engine.loop import train  # noqa: E402

#: Five iterations; checkpoints and scores are written in the middle and at the end, with a weight average.
SETTINGS = (
    "train.max_iter=5",
    "train.checkpointer.period=2",
    "train.checkpointer.max_to_keep=1",
    "train.eval_period=3",
    "model.noise=0.1",
    "train.model_ema.enabled=True",
    "dataloader.evaluator._target_=fake_run.WritingEvaluator",
    "dataloader.evaluator.output_dir=${train.output_dir}",
)


class Points:
    """Counts accesses to the files of a folder, and kills the process at one of them.

    Args:
        folder: the folder of the run.
        fatal: number of the point at which to kill, -1 for none.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal = str(folder), fatal
        self.names: list[str] = []
        self._open = io.open

    def reach(self, name: str, path: object) -> bool:
        """Count a point; whether the process must die there."""
        if not isinstance(path, (str, os.PathLike)):
            return False
        text = os.fspath(path)
        # TensorBoard writes its events in a thread, so their order differs between runs.
        if not text.startswith(self.folder) or "tfevents" in text:
            return False
        self.names.append(f"{name} {Path(text).name}")
        return len(self.names) - 1 == self.fatal

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: Python calls it before the access."""
        if event in ("os.rename", "os.remove", "os.mkdir") and self.reach(f"before {event}", arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        """`open`, with a point before a file is opened for writing and one in the middle of each first write."""
        if not set(mode) & set("wax+"):
            return self._open(file, mode, *args, **options)
        if self.reach("before open", file):
            os.kill(os.getpid(), signal.SIGKILL)
        opened = self._open(file, mode, *args, **options)
        return _Cut(opened, self, file, "a" in mode) if str(file).startswith(self.folder) else opened


class _Cut:
    """A file that may be cut in the middle of a write: of the first one, or of each one when appending."""

    def __init__(self, file: Any, points: Points, path: Any, every: bool) -> None:
        self._file, self._points, self._path, self._every = file, points, path, every
        self._first = True

    def write(self, data: Any) -> Any:
        if (self._first or self._every) and self._points.reach("while writing", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self._first = False
        return self._file.write(data)

    def __enter__(self) -> _Cut:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def count_accesses(points: Points) -> None:
    """Count the accesses of this process from now on."""
    sys.addaudithook(points.audit)
    builtins.open = io.open = points.open  # pathlib opens files by io.open
    os.fsync = lambda _: None  # slow, and a killed process loses no written data


def fork_training(folder: Path, resume: bool, fatal: int = -1, names: Path | None = None) -> bool:
    """Train in a forked process; returns whether it was killed, and writes its points to the file `names`."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            points = Points(folder, fatal)
            count_accesses(points)
            train(fake_run.config(folder, *SETTINGS), resume=resume, progress=Console(quiet=True))
            if names is not None:
                names.write_text(json.dumps(points.names))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, result = os.waitpid(process, 0)
    if os.WIFEXITED(result) and os.WEXITSTATUS(result) != 0:
        raise RuntimeError(f"the training in {folder} failed")
    return os.WIFSIGNALED(result)


def report(entry: dict[str, Any]) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def main(root: Path) -> None:
    """Train once without a kill, then once per point."""
    torch.set_num_threads(1)
    listing = root / "points.json"
    # The first training of a process imports and caches most of what it needs: the forks inherit that.
    train(fake_run.config(root / "first", *SETTINGS), progress=Console(quiet=True))
    fork_training(root / "whole", resume=False, names=listing)
    report({"point": "", "killed": False, "folder": "whole"})
    for number, point in enumerate(json.loads(listing.read_text())):
        folder = root / f"killed{number}"
        killed = fork_training(folder, resume=False, fatal=number)
        fork_training(folder, resume=True)
        report({"point": f"{number}: {point}", "killed": killed, "folder": folder.name})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
