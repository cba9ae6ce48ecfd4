"""Jobs of the page: one video each, in a folder of its own, processed one after the other by a thread."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import UserError
from ...results.colours import colour
from ...structures import FrameResult
from ..predict import L2G
from ..report.report import report
from ..source import Source, TimedFrame, select
from ..stream import Stream
from ..video import open_source
from .camera import CameraFrames
from .limits import Limits

State = Literal["waiting", "running", "done", "failed"]
_SHOWN_SIDE = 960  # pixels of the longer side of a frame on the page
_THUMBNAIL = (96, 72)  # pixels
_NAME = "video"  # of the output folder: names of uploads are shown, never used as paths
_UNSEEN = "stopped before its first frame"

Pixels = NDArray[np.uint8]


class FullError(UserError):
    """The server takes no further job."""


class Changes:
    """A counter that coroutines wait for and threads increase."""

    def __init__(self) -> None:
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()
        self.count = 0

    def publish(self) -> None:
        """Increases the counter and wakes all waiting coroutines; any thread may call it."""
        with self._lock:
            self.count += 1
            for loop, event in self._waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    async def after(self, count: int, seconds: float) -> int:
        """Waits until the counter exceeds `count`, or the time is over; returns the counter."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.add(entry)
        try:
            if self.count <= count:
                await asyncio.wait_for(entry[1].wait(), seconds)
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(entry)
        return self.count


@dataclass
class Shown:
    """What the page shows of a job.

    Attributes:
        frame: number of frames done.
        image: (3, H, W) uint8 with the masks drawn.
        objects: {id, score} of each object on this frame.
    """

    frame: int
    image: Tensor
    objects: list[dict[str, Any]]
    _jpeg: bytes | None = field(default=None, repr=False)

    def jpeg(self) -> bytes:
        """The image, reduced to the size of the page; encoded once."""
        if self._jpeg is None:
            self._jpeg = to_jpeg(self.image, _SHOWN_SIDE)
        return self._jpeg


class Job:
    """One video.

    Args:
        folder: of this job only.
        title: name of the upload, shown on the page.
        source: opens the frames, in the job's thread.
        limits: of the server.
        threshold: minimal score of reported objects; None for the model's.
        classes: names of the reported classes; None for all.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        source: Callable[[], Source],
        limits: Limits,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.id = folder.name
        self.folder, self.title, self.limits = folder, title, limits
        self.state: State = "waiting"
        self.message = ""
        self.frames: int | None = None  # expected; a video of a variable rate may have more or less
        self.shown: Shown | None = None
        self.thumbnails: dict[int, bytes] = {}
        self.names: dict[int, str] = {}
        self.changes = Changes()
        self.ended = 0.0
        self.paused = False
        self.camera: CameraFrames | None = None
        self._open = source
        self._selection = (threshold, classes)
        self._selected: object = None
        self._stopped = False
        self.deleted = False
        self._resumed = threading.Condition()

    @property
    def files(self) -> dict[str, Path]:
        """The downloads by name; only files directly in the output folder."""
        folder = self.folder / _NAME
        return {path.name: path for path in sorted(folder.glob("*")) if path.is_file()}

    def select(self, threshold: float | None, classes: Sequence[str] | None, paused: bool) -> None:
        """Changes what the next frames report, or pauses."""
        with self._resumed:
            self._selection = (threshold, classes)
            self.paused = paused
            self._resumed.notify_all()
        self.changes.publish()

    def stop(self) -> None:
        """Ends the video after the current frame; its files are written."""
        with self._resumed:
            self._stopped = True
            self._resumed.notify_all()
        if self.camera is not None:
            self.camera.close()

    def run(self, model: L2G, count: Callable[[float], None]) -> None:
        """Processes the video; errors end up in `message`.

        Args:
            model: the model.
            count: called after each frame with the seconds since the frame before.
        """
        if self._stopped:
            self._end("failed", _UNSEEN)
            return
        self.state = "running"
        self.changes.publish()
        last = time.monotonic()

        def watch(stream: Stream, frame: Tensor, drawn: Tensor, result: FrameResult) -> None:
            nonlocal last
            if self._selected is not self._selection:
                self._selected = self._selection
                stream.select(*self._selection)
            self._show(frame, drawn, result)
            now = time.monotonic()
            count(now - last)
            last = now

        try:
            source = self._limited(self._open())
            threshold, classes = self._selection
            model.predict(source, self.folder, threshold, classes, watch=watch)
            report(self.folder / _NAME)
            self._end("done", "")
        except UserError as error:
            self._end("failed", self._public(str(error)))
        except Exception:
            logging.getLogger(__name__).exception("l2g serve: job failed")
            self._end("failed", "the server failed at this video")

    def _public(self, message: str) -> str:
        """An error as a visitor may see it: with the title instead of the paths of this machine."""
        upload = re.escape(f"{self.folder}/upload") + r"(\.\w+)?"
        named = re.sub(upload, lambda _: self.title, message)
        return named.replace(str(self.folder), "").replace(f"{_NAME}: ", "")

    def _limited(self, source: Source) -> Source:
        """The source up to the longest length, under the control of the page."""
        if source.length is not None:
            self.frames = min(source.length, math.ceil(self.limits.seconds * source.fps))
        cut = select(source, end=self.limits.seconds)
        return replace(cut, name=_NAME, read=lambda: self._controlled(cut.read()))

    def _controlled(self, frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        for number, item in enumerate(frames):
            with self._resumed:
                waited = self._resumed.wait_for(lambda: self._stopped or not self.paused, self.limits.idle)
            if self._stopped or not waited:
                if number == 0:
                    raise UserError(_UNSEEN)
                break
            yield item

    def _show(self, frame: Tensor, drawn: Tensor, result: FrameResult) -> None:
        for identity in set(result.ids.tolist()) - self.thumbnails.keys():
            row = result.ids.tolist().index(identity)
            self.names[identity] = result.class_names[int(result.labels[row])]
            self.thumbnails[identity] = _thumbnail(frame, result.masks[row])
        objects = [
            {"id": identity, "score": round(score, 3)}
            for identity, score in zip(result.ids.tolist(), result.scores.tolist(), strict=True)
        ]
        self.shown = Shown(result.index + 1, drawn, objects)
        self.changes.publish()

    def _end(self, state: State, message: str) -> None:
        self.state, self.message, self.ended = state, message, time.monotonic()
        self.changes.publish()

    def about(self, position: int) -> dict[str, Any]:
        """The state of the job for the page.

        Args:
            position: jobs before it in the queue.
        """
        shown = self.shown
        return {
            "title": self.title,
            "state": self.state,
            "paused": self.paused,
            "message": self.message,
            "position": position,
            "frame": shown.frame if shown else 0,
            "frames": self.frames,
            "objects": shown.objects if shown else [],
            "known": [
                {"id": i, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*colour(i))}
                for i, name in list(self.names.items())
            ],
            "files": list(self.files) if self.state in ("done", "failed") else [],
        }


class Queue:
    """All jobs of a server; their folders are deleted at the end.

    Args:
        model: the model; it processes one video at a time.
        root: folder for the folders of jobs.
        limits: of the server.
        count: called after each frame with its seconds.
    """

    def __init__(self, model: L2G, root: Path, limits: Limits, count: Callable[[float], None]) -> None:
        self.model, self.root, self.limits = model, root, limits
        self._count = count
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._reserved = 0
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="l2g-serve", daemon=True)

    def start(self) -> None:
        """Starts the thread that processes the videos."""
        self._thread.start()

    def states(self) -> dict[str, int]:
        """Number of jobs by state."""
        states = [job.state for job in list(self._jobs.values())]
        return {state: states.count(state) for state in ("waiting", "running", "done", "failed")}

    def get(self, identity: str) -> Job | None:
        """The job with an id that cannot be guessed; None if there is none."""
        return self._jobs.get(identity)

    def position(self, job: Job) -> int:
        """Number of jobs that are processed before it."""
        with self._changed:
            waiting = list(self._waiting)
            return waiting.index(job) + (self._running is not None) if job in waiting else 0

    def reserve(self) -> Path:
        """A folder for a new job, before its upload; `add` or `release` must follow.

        Raises:
            FullError: if too many jobs wait or are stored.
        """
        with self._changed:
            active = len(self._waiting) + (self._running is not None) + self._reserved
            if active >= self.limits.jobs:
                raise FullError(f"{active} videos are being processed; try again later")
            if len(self._jobs) + self._reserved >= self.limits.stored:
                raise FullError("too many results are stored; try again later")
            self._reserved += 1
        folder = self.root / secrets.token_urlsafe(18).replace("-", "x")
        folder.mkdir()
        return folder

    def release(self, folder: Path) -> None:
        """Gives a reserved place back."""
        with self._changed:
            self._reserved -= 1
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, job: Job) -> None:
        """Queues a job in its reserved place."""
        with self._changed:
            self._reserved -= 1
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()

    def delete(self, job: Job) -> None:
        """Stops a job and deletes its folder as soon as no thread writes to it."""
        job.stop()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job is self._running:
                job.deleted = True
                return
            self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def expire(self) -> None:
        """Deletes jobs whose time is over."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            ended = job is not self._running and job.state in ("done", "failed")
            if ended and now - job.ended > self.limits.keep:
                self.delete(job)

    def close(self) -> None:
        """Stops all jobs, waits for the running job, and deletes all folders."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for job in list(self._jobs.values()):
            job.stop()
        self._thread.join(30)
        for folder in self.root.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                self._running = job = self._waiting.popleft()
            for other in list(self._waiting):
                other.changes.publish()
            job.run(self.model, self._count)
            with self._changed:
                self._running = None
            if job.deleted:
                self.delete(job)


def upload_source(path: Path) -> Callable[[], Source]:
    """Opens an uploaded file: a video or an image."""
    return lambda: open_source(path)


def to_jpeg(image: Tensor, side: int) -> bytes:
    """A (3, H, W) uint8 image as JPEG, with a longer side of at most `side` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image.numpy().transpose(1, 2, 0)))
    picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _thumbnail(image: Tensor, mask: Tensor) -> bytes:
    """The part of an image around a mask, as JPEG."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    part = image[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    return to_jpeg(part, max(_THUMBNAIL))
