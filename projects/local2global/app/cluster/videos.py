"""What an actor of `l2g predict --ray` does with a video: inspect it, and predict it unless that is done already.

`done.json` in the output folder describes the input, the settings and the weights that made the folder.  A video is
done if they are still the same and no file of the folder is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_text
from ..predict import L2G
from ..source import Source, select
from ..video import open_source
from ..video_source import key_times
from . import storage

Entry = dict[str, Any]
"""A line of `manifest.jsonl`, and the content of `done.json`."""

_KEYS = {
    "input",
    "name",
    "status",
    "hash",
    "version",
    "span",
    "settings",
    "model",
    "frames",
    "objects",
    "outputs",
}


@dataclass(frozen=True)
class Settings:
    """What the workers of a run need to know.

    Attributes:
        output: address of the output folder.
        weights: as `L2G.from_pretrained` takes them.
        device: of the model, or None.
        overrides: of the model.
        fps: frames per second instead of the time stamps, or None.
        start: first frame in seconds.
        end: end in seconds, or None.
        every: 2 selects every second frame.
        size: shorter edge of the frames in pixels, or None.
        pieces: longest duration of a piece in seconds; None predicts every video as a whole.
        options: further arguments of `L2G.predict`.
        command: the command line, for stream.json.
    """

    output: str
    weights: str
    device: str | None = None
    overrides: Sequence[str] = ()
    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    every: int = 1
    size: int | None = None
    pieces: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ("l2g",)


@dataclass(frozen=True)
class Job:
    """A video, or a piece of one.

    Attributes:
        input: address of a video file or of a folder of frames.
        name: of the output folder.
        span: start and end of a piece in seconds, or None; the end is None where the video ends.
        hash: of the content, if it is known.
    """

    input: str
    name: str
    span: tuple[float, float | None] | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Inspected:
    """A job with its bytes, or with its frames if it is a piece, 0 if unknown; and with its entry if it is done."""

    job: Job
    size: int
    entry: Entry | None = None


class VideoWorker:
    """Predicts videos with one model.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        """Loads nothing."""
        self.settings = settings

    def load(self) -> None:
        """Loads the model.

        Raises:
            UserError: if the weights cannot be loaded on this machine.
        """
        settings = self.settings
        sys.argv = list(settings.command)
        self.model = L2G.from_pretrained(settings.weights, settings.device, settings.overrides)
        frames = [settings.fps, settings.start, settings.end, settings.every, settings.size]
        content = [frames, settings.overrides, self.model.threshold, settings.options]
        text = json.dumps(content, sort_keys=True, default=_plain)
        self._made_with = {
            "settings": hashlib.sha256(text.encode()).hexdigest(),
            "model": self.model.fingerprint,
        }

    def inspect(self, jobs: Sequence[Job]) -> list[Inspected]:
        """The jobs, or their pieces, with their sizes; and with their entries if they are done."""
        return [inspected for job in jobs for inspected in self._inspect(job)]

    def _inspect(self, job: Job) -> Iterator[Inspected]:
        try:
            if self.settings.pieces is None:
                entry = self._entry(job)
                yield Inspected(job, sum(storage.sizes(job.input).values()) if entry is None else 0, entry)
                return
            with storage.local_copy(job.input) as path:
                source = open_source(path, self.settings.fps)
                spans = _spans(path, self.settings)
                job = replace(job, hash=storage.content_hash(path))
        except (OSError, UserError):
            yield Inspected(job, 0)  # `predict` meets the same error, and reports it
            return
        for number, (start, end) in enumerate(spans):
            piece = replace(job, name=f"{job.name}-{number:04}", span=(start, end))
            length = (source.length or 0) if end is None else round(end * source.fps)
            yield Inspected(piece, length - round(start * source.fps), self._entry(piece))
        if not spans:
            yield Inspected(job, source.length or 0, self._entry(job))

    def _entry(self, job: Job) -> Entry | None:
        """The entry of a job that is done; `done.json` is written again if the input has only moved."""
        folder = self._folder(job)
        entry = _read_entry(folder)
        made_with = {**self._made_with, "span": job.span and list(job.span)}
        if entry is None or any(entry[key] != value for key, value in made_with.items()):
            return None
        found = storage.sizes(folder)
        if any(found.get(name) != size for name, size in entry["outputs"].items()):
            return None
        version = storage.version(job.input)
        if version is None or entry["version"] != version or entry["input"] != job.input:
            if (job.hash or _hash(job.input)) != entry["hash"]:
                return None
            entry |= {"input": job.input, "version": version}
            storage.write_bytes(f"{folder}/{storage.MARKER}", json.dumps(entry, indent=1).encode())
        return entry

    def predict(self, job: Job) -> Entry:
        """Writes the output folder of a job, whole or not at all.

        Returns:
            the entry of the manifest.

        Raises:
            UserError: if the video cannot be read.
        """
        begin = time.perf_counter()
        with (
            _messages() as messages,
            storage.local_copy(job.input) as path,
            storage.new_folder(self._folder(job)) as folder,
        ):
            entry: Entry = {
                "input": job.input,
                "name": job.name,
                "status": "done",
                "hash": job.hash or storage.content_hash(path),
                "version": storage.version(job.input),
                "span": job.span and list(job.span),
                **self._made_with,
            }
            try:
                prediction = self.model.predict(
                    self._open(path, job), output_dir=folder.parent, **self.settings.options
                )
            except UserError as error:
                raise _first_cause(error) from None
            entry |= {
                "seconds": round(time.perf_counter() - begin, 3),
                "frames": prediction.frames,
                "objects": dict(prediction.objects),
                "outputs": storage.sizes(folder),
                "messages": [*messages, *filter(None, (prediction.warning,))],
            }
            write_text(folder / storage.MARKER, json.dumps(entry, indent=1))
        return entry

    def _folder(self, job: Job) -> str:
        return f"{self.settings.output}/{job.name}"

    def _open(self, path: Path, job: Job) -> Source:
        """The frames of a job, as `l2g predict` reads them."""
        settings = self.settings
        source = replace(open_source(path, settings.fps), name=job.name)
        if storage.local_path(job.input) is None:
            source = replace(source, path=job.input)
        start, end = job.span or (settings.start, settings.end)
        return select(source, start, end, settings.every, settings.size)


def _read_entry(folder: str) -> Entry | None:
    """The entry in an output folder; None if it has none, or a damaged one."""
    try:
        entry = json.loads(storage.read_bytes(f"{folder}/{storage.MARKER}") or b"")
    except ValueError:
        return None
    is_whole = isinstance(entry, dict) and entry.keys() >= _KEYS and isinstance(entry["outputs"], dict)
    return entry if is_whole else None


def _hash(address: str) -> str:
    with storage.local_copy(address) as path:
        return storage.content_hash(path)


def _spans(path: Path, settings: Settings) -> list[tuple[float, float | None]]:
    """Start and end of pieces that begin at key frames and last `settings.pieces` seconds at most, if keys allow it.

    Returns:
        consecutive pieces of the selected part of a video; empty for frames without a video file.
    """
    assert settings.pieces is not None
    if path.is_dir():
        return []
    cuts, last = [settings.start], settings.start
    end = settings.end or float("inf")
    for time_stamp in key_times(path):
        time_stamp = min(time_stamp, end)
        if time_stamp > cuts[-1] + settings.pieces and last > cuts[-1]:
            cuts.append(last)
        last = max(last, time_stamp)
    return list(zip(cuts, [*cuts[1:], settings.end], strict=True))


def _plain(value: Any) -> Any:
    """A value of the settings in a form that does not depend on the process."""
    return sorted(value) if isinstance(value, (set, frozenset)) else vars(value)


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collects the warnings of the package inside the block, which would be lost on another machine."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(__package__.partition(".")[0])
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _first_cause(error: UserError) -> UserError:
    """The innermost error.  The outer one names the finished frames, which are deleted with the incomplete folder."""
    while isinstance(error.__cause__, UserError):
        error = error.__cause__
    return error
