"""`l2g predict --ray`: the driver, which hands videos to the workers and writes `manifest.jsonl`.

The driver holds the names of the videos and the tasks that are running, so its memory does not grow with the results.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from ...errors import UserError, first_line
from ...files import delete_partial_files, locked_folder
from ..image_source import IMAGE_SUFFIXES
from ..output import progress_bar
from ..source import check_name, unique_name
from . import storage
from .pool import Pool, capacity, connected, resources_of
from .videos import Entry, Inspected, Job, Settings, VideoWorker

_CHUNK = 16  # videos that one task inspects
_PUBLISH = 60.0  # seconds between two versions of the manifest
MANIFEST = "manifest.jsonl"
_COUNTED = ("done", "unchanged", "failed")


@dataclass
class Tally:
    """Sums over the videos of one state.

    Attributes:
        videos: number of videos, or pieces.
        frames: number of frames.
        objects: number of objects.
        seconds: of the workers.
    """

    videos: int = 0
    frames: int = 0
    objects: int = 0
    seconds: float = 0.0

    def add(self, entry: Entry) -> None:
        """Counts one video."""
        self.videos += 1
        self.frames += entry.get("frames", 0)
        self.objects += sum(entry.get("objects", {}).values())
        self.seconds += entry.get("seconds", 0.0)


class Manifest:
    """`manifest.jsonl` in an output folder: one line per video, the newest.

    The lines are collected in a temporary file and published every minute and at the end.  Lines of earlier runs stay
    for the names that this run has not reached.

    Args:
        output: address of the output folder.
    """

    def __init__(self, output: str) -> None:
        """Reads nothing."""
        self.address = f"{output}/{MANIFEST}"
        self._names: set[int] = set()  # hashes, which are smaller than the names
        self._published = time.monotonic()
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by `close`

    def add(self, entry: Entry) -> None:
        """Appends the line of a video."""
        line = {key: value for key, value in entry.items() if key not in ("version", "messages")}
        line["outputs"] = [f"{entry['name']}/{file}" for file in sorted(entry.get("outputs", ()))]
        self._file.write(json.dumps(line).encode() + b"\n")
        self._names.add(hash(entry["name"]))
        if time.monotonic() - self._published > _PUBLISH:
            self.publish()

    def publish(self) -> None:
        """Writes the lines of this run, and those of earlier runs for other names."""
        self._file.flush()
        with tempfile.TemporaryDirectory(prefix="l2g-") as folder:
            whole = Path(folder) / MANIFEST
            with whole.open("wb") as file, storage.opened(self.address) as earlier:
                file.writelines(line for line in earlier if hash(_name(line)) not in self._names)
                self._file.seek(0)
                file.writelines(self._file)
            if whole.stat().st_size:
                storage.write_file(self.address, whole)
        self._published = time.monotonic()

    def close(self) -> None:
        """Publishes the last lines."""
        self.publish()
        self._file.close()


def _name(line: bytes) -> str | None:
    try:
        name: str | None = json.loads(line)["name"]
    except (ValueError, TypeError, KeyError):
        return None
    return name


def name_jobs(inputs: Iterable[str]) -> Iterator[Job]:
    """Jobs with unique names, which are those that one process gives to the same inputs.

    Raises:
        UserError: if an input is an image, or its name can not be that of a folder.
    """
    taken = {MANIFEST}
    for address in inputs:
        path = Path(address.rstrip("/"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            raise UserError(f"{address}: --ray takes videos and folders of frames; name the folder")
        folder = storage.local_path(address)
        stem = path.name if folder is not None and folder.is_dir() else path.stem
        name = unique_name(stem, taken)
        check_name(name, address)
        taken.add(name)
        yield Job(address, name)


def predict_videos(
    inputs: Sequence[str], settings: Settings, address: str, workers: int | None = None
) -> None:
    """Predicts videos on a Ray cluster; what is done already, with the same settings and weights, is left as it is.

    Args:
        inputs: addresses and globs of videos and of folders of frames.
        settings: of the run.
        address: as `connected` takes it.
        workers: number of workers; default: as many as the cluster has room for.

    Raises:
        UserError: if no input matches, the cluster cannot be reached, the weights cannot be loaded, another process
            writes to the output folder, or videos have failed; the others are done.
        KeyboardInterrupt: after Ctrl-C; the finished videos are in the manifest, and nothing is left of the others.
    """
    jobs = list(name_jobs(storage.expand(inputs)))
    if not jobs:
        raise UserError("no input: name videos, folders of frames, or globs of them")
    if settings.pieces is not None and settings.fps is not None:
        raise UserError("--pieces cuts at the time stamps of the video, which --fps replaces; choose one")
    weights = Path(settings.weights).expanduser()
    settings = replace(
        settings,
        output=storage.absolute(settings.output),
        weights=str(weights.absolute()) if weights.exists() else settings.weights,
    )
    tallies = {name: Tally() for name in _COUNTED}
    count = len(jobs)
    try:
        _run(jobs, settings, address, workers, tallies)
    except KeyboardInterrupt:
        done = tallies["done"].videos + tallies["unchanged"].videos
        typer.echo(
            f"l2g: interrupted: {done} of {count} videos are done; the same command does the rest", err=True
        )
        raise
    _show(tallies)
    typer.echo(f"manifest: {settings.output}/{MANIFEST}")
    if failed := tallies["failed"].videos:
        raise UserError(f"{failed} of {sum(tally.videos for tally in tallies.values())} videos failed")


def _run(
    jobs: list[Job], settings: Settings, address: str, workers: int | None, tallies: dict[str, Tally]
) -> None:
    """Predicts the jobs; counts them, and writes their lines of the manifest."""
    local = storage.local_path(settings.output)
    with ExitStack() as stack:
        stack.enter_context(locked_folder(local, "--output") if local is not None else nullcontext())
        stack.enter_context(connected(address, workers))
        resources = resources_of(settings.device)
        manifest = Manifest(settings.output)
        stack.callback(manifest.close)
        pool = Pool(VideoWorker, [settings], workers or capacity(resources), resources)
        stack.enter_context(_cleaned(pool, settings.output))
        display = stack.enter_context(_Display(len(jobs), tallies, pool))
        for state, entry in _outcomes(pool, jobs, display):
            if state == "failed":
                storage.discard_incomplete(f"{settings.output}/{entry['name']}")
            tallies[state].add(entry)
            manifest.add(entry)
            display.report(state, entry)


def _outcomes(pool: Pool, jobs: list[Job], display: _Display) -> Iterator[tuple[str, Entry]]:
    """The state and the entry of every video or piece, in order of completion."""
    todo: list[tuple[int, int, Job]] = []
    rising = itertools.count()
    for chunk, found in pool.run("inspect", _chunks(jobs)):
        if isinstance(found, Exception):  # the header of one of these videos kills the worker
            found = [Inspected(job, 0) for job in chunk]
        display.inspected(len(chunk), len(found))
        for inspected in found:
            if inspected.entry is not None:
                yield "unchanged", inspected.entry
            else:
                todo.append((inspected.size, -next(rising), inspected.job))
    todo.sort()
    largest_first = (todo.pop()[-1] for _ in range(len(todo)))
    for job, result in pool.run("predict", largest_first):
        if isinstance(result, Exception):
            error = first_line(result)
            yield "failed", {"input": job.input, "name": job.name, "status": "failed", "error": error}
        else:
            yield "done", result


def _chunks(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs in chunks; the list is emptied."""
    jobs.reverse()
    while jobs:
        chunk = jobs[-_CHUNK:]
        del jobs[-_CHUNK:]
        yield chunk[::-1]


@contextmanager
def _cleaned(pool: Pool, output: str) -> Iterator[None]:
    """Stops a pool at the end of the block, and deletes what its running tasks have left."""
    local = storage.local_path(output)
    try:
        with pool:
            yield
    finally:
        if local is not None:
            delete_partial_files(local)
        for task in pool.unfinished:
            if isinstance(task, Job):
                storage.discard_incomplete(f"{output}/{task.name}")


class _Display:
    """The progress of a run: a bar on a terminal, a line per minute elsewhere; failures and warnings as they come.

    Args:
        videos: number of videos.
        tallies: what is done, by state.
        pool: the workers.
    """

    def __init__(self, videos: int, tallies: dict[str, Tally], pool: Pool) -> None:
        """Shows nothing yet."""
        self._left, self._tallies, self._pool = videos, tallies, pool
        self._total = 0
        self._said = time.monotonic()

    def __enter__(self) -> _Display:
        """Starts the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(progress_bar(*columns))
        self._task = self._bar.add_task("starting workers", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the bar."""
        self._stack.close()

    def inspected(self, videos: int, pieces: int) -> None:
        """Some videos were inspected, and are predicted in pieces or as a whole."""
        self._left -= videos
        self._total += pieces
        self._update()

    def report(self, state: str, entry: Entry) -> None:
        """A video has ended."""
        for line in entry.get("messages", ()) if state == "done" else ():
            typer.echo(line, err=True)
        if state == "failed":
            typer.echo(f"l2g: {entry['name']}: {entry['error']}", err=True)
        self._update()

    def _update(self) -> None:
        done = sum(tally.videos for tally in self._tallies.values())
        state = f"{self._pool.ready} workers, {self._tallies['failed'].videos} failed"
        if self._left:
            state += f", {self._left} to inspect"
        self._bar.update(self._task, description=state, completed=done, total=self._total)
        if self._bar.disable and time.monotonic() - self._said > _PUBLISH:
            self._said = time.monotonic()
            typer.echo(f"l2g: {done} of {self._total} videos, {state}", err=True)


def _show(tallies: dict[str, Tally]) -> None:
    """Prints the table of a run."""
    from rich.console import Console
    from rich.table import Table

    table = Table("state", "videos", "frames", "objects", "seconds when predicted")
    for column in table.columns[1:]:
        column.justify = "right"
    for state, tally in tallies.items():
        table.add_row(state, str(tally.videos), str(tally.frames), str(tally.objects), f"{tally.seconds:.1f}")
    Console().print(table)
