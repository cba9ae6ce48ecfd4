"""Metrics of a run: metrics.jsonl, TensorBoard, wandb, a progress bar, and a table of scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..errors import UserError
from ..files import cannot_write, write_text

Item = TypeVar("Item")


def flatten(scores: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested scores as flat keys: {"segm": {"AP": 1.0}} becomes {"segm/AP": 1.0}."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat


def print_table(scores: Mapping[str, Any], console: Console | None = None) -> None:
    """Print scores, {task: {name: number}}, one row per task and name; NaN is printed as "-"."""
    table = Table("task", "score", "value")
    table.columns[2].justify = "right"
    for name, value in flatten(scores).items():
        task, _, score = name.rpartition("/")
        table.add_row(task, score, "-" if math.isnan(value) else f"{value:.2f}")
    (console or Console()).print(table)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a metrics.jsonl; none if there is no such file.

    Other lines are skipped: a killed process leaves an incomplete line, a crash of the machine a damaged one.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        text = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("iteration")) is int:
                yield entry


def truncate_after(path: Path, iteration: int) -> None:
    """Delete the entries of metrics.jsonl after `iteration`, which a resumed run repeats, and damaged lines."""
    if path.exists():
        kept = [entry for entry in read_entries(path) if entry["iteration"] <= iteration]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


class RunLog:
    """Log of a run, written by the first process; a context manager.

    Args:
        folder: output folder of metrics.jsonl and the TensorBoard events.
        last: the last iteration whose entries are kept, -1 for a new run.
        max_iter: length of the run.
        console: shows a progress bar on a terminal, one line per entry elsewhere.
        wandb: arguments of `wandb.init`, or None.
    """

    def __init__(
        self, folder: Path, last: int, max_iter: int, console: Console, wandb: Mapping[str, Any] | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.console, self.max_iter = console, max_iter
        self.path = folder / "metrics.jsonl"
        truncate_after(self.path, last)
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder), purge_step=last + 1)
        self.wandb = _wandb(wandb) if wandb is not None else None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task("train", total=max_iter, completed=last + 1, status="")

    def __enter__(self) -> RunLog:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        # Closing writes what is buffered, which fails again on a full disk.
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the progress bar inside the `with`, where another one is shown."""
        self.bar.stop()
        try:
            yield
        finally:
            self.bar.start()

    def advance(self, iteration: int) -> None:
        """Show `iteration` as finished in the progress bar."""
        self.bar.update(self.task, completed=iteration + 1)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write one entry to all outputs; a number that is not finite is written as null to metrics.jsonl.

        Raises:
            UserError: if metrics.jsonl was deleted or cannot be written.
        """
        if not self.path.is_file():
            raise UserError(f"{self.path}: the file was deleted while the training was running")
        entry = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self.file.write(json.dumps({"iteration": iteration, **entry}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, iteration)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if self.wandb is not None:
            self.wandb.log(dict(values), step=iteration)
        if "total_loss" not in values:
            return
        status = f"loss {values['total_loss']:.4g}  {1 / max(values['time'], 1e-9):.2f} it/s"
        self.bar.update(self.task, status=status)
        if not self.console.is_terminal:
            eta = timedelta(seconds=round(values["eta_seconds"]))
            line = f"iteration {iteration + 1}/{self.max_iter}  {status}  lr {values['lr']:.3g}  eta {eta}"
            self.console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(
    items: Iterable[Item], description: str, console: Console, quiet: bool
) -> Iterator[Iterator[Item]]:
    """Iterate over `items` under a progress bar, shown on a terminal unless `quiet`."""
    total = len(items) if isinstance(items, Sized) else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        yield iter(bar.track(items, total=total, description=description))


def _wandb(parameters: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("train.wandb.enabled: wandb is not installed. Run: pip install wandb") from error
    Path(parameters.get("dir", ".")).mkdir(parents=True, exist_ok=True)
    return wandb.init(**parameters)
