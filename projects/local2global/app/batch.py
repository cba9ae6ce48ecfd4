"""Many videos: one after the other, or several at a time, in several processes.

A process decodes, segments, draws and encodes its video, and loads the model once.  Threads would share Python's lock:
on two cores they gain nothing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..errors import UserError
from .predict import L2G
from .result_folder import Prediction
from .source import Source

_ON_GPU = 3  # processes that share a GPU: one in the model, one decoding, one encoding
_ON_CPU = 4  # at most, since each holds a model and its activations: about 600 MB for the demo's at 720p
_REFRESH = 0.1  # seconds between two looks at the progress

Outcome = tuple[str, Prediction | Exception]
Report = Callable[[str, int, int], None]
"""Called with (name of a video, frames done, objects on the frame)."""


def predict_one_by_one(
    predict: Callable[..., Prediction], sources: Iterable[Source], progress: Report
) -> Generator[Outcome, None, None]:
    """Predicts the sources in turn, in the calling thread, so that an interrupt reaches a source that waits.

    Args:
        predict: writes the results of one source, as `L2G.predict` does; called with `progress` by name.
        sources: the videos.
        progress: called after every frame.

    Yields:
        the name of each source with its prediction.  Exceptions are raised.
    """
    for source in sources:

        def advance(done: int, total: int | None, objects: int, name: str = source.name) -> None:
            del total
            progress(name, done, objects)

        yield source.name, predict(source, progress=advance)


def predict_batch(
    model: L2G,
    load: Callable[[], L2G],
    videos: Mapping[str, Callable[[], Source]],
    options: Mapping[str, Any],
    processes: int,
    progress: Report,
) -> Generator[Outcome, None, None]:
    """Predicts several videos at a time: one in a thread of this process, the others in processes of their own.

    This process starts at once, while the others import torch and load the model.  The results are those of one video
    after the other with as many threads per model.  A failure does not affect the other videos.  Closing the generator
    or an interrupt stops the running videos at their next frame; their files hold the frames done so far.

    Args:
        model: used in this process.
        load: loads the model in each other process; it and `videos` are pickled.
        videos: opens the source of each name; started in this order.
        options: further arguments of `L2G.predict`.
        processes: number of videos at a time; they share torch's threads.
        progress: called after every frame.

    Yields:
        each name with its prediction or its exception, in order of completion.
    """
    context = multiprocessing.get_context("spawn")
    stopped, reports = context.Event(), context.SimpleQueue()
    available = torch.get_num_threads()
    threads = max(1, available // processes)
    here = _Process(lambda: model, stopped, reports)
    own = ThreadPoolExecutor(1, "l2g-batch", torch.set_num_threads, (threads,))
    # A pool starts a process with its first video only.
    others = ProcessPoolExecutor(max(1, processes - 1), context, _start, (load, stopped, reports, threads))
    queue = deque(videos.items())
    running: dict[Future[Prediction], tuple[str, bool]] = {}

    def begin(in_this_process: bool) -> None:
        if not queue:
            return
        name, video = queue[0]
        with suppress(BrokenProcessPool):  # the video is left to this process
            if in_this_process:
                future = own.submit(here.predict, name, video, options)
            else:
                with _interrupts_blocked():
                    future = others.submit(_predict, name, video, options)
            running[future] = (name, in_this_process)
            queue.popleft()

    try:
        for number in range(processes):
            begin(in_this_process=number == 0)
        while running:
            done, _ = wait(running, _REFRESH, FIRST_COMPLETED)
            while not reports.empty():
                progress(*reports.get())
            for future in done:
                name, in_this_process = running.pop(future)
                begin(in_this_process)
                yield name, _result(future)
    finally:
        stopped.set()
        own.shutdown()
        others.shutdown()
        torch.set_num_threads(available)


def processes_for(device: torch.device, videos: int) -> int:
    """How many of some videos are predicted at a time on a device."""
    return max(1, min(videos, _ON_GPU if device.type == "cuda" else min(_ON_CPU, _cores())))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started in the block inherit that interrupts wait, also while they import torch; see `_start`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _result(future: Future[Prediction]) -> Prediction | Exception:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return UserError("a process ended at once, as for want of memory; `--resume` continues")
    if error is not None and not isinstance(error, Exception):
        raise error
    return future.result() if error is None else error


# --- In the processes ---


@dataclass
class _Process:
    """What a process keeps from one video to the next."""

    load: Callable[[], L2G]
    stopped: Any
    reports: Any

    @cached_property
    def model(self) -> L2G:
        return self.load()

    def predict(self, name: str, video: Callable[[], Source], options: Mapping[str, Any]) -> Prediction:
        """Predicts one video, up to the frame at which the batch is stopped."""

        def advance(done: int, total: int | None, objects: int) -> None:
            del total
            if self.stopped.is_set():
                raise KeyboardInterrupt
            self.reports.put((name, done, objects))

        if self.stopped.is_set():
            raise KeyboardInterrupt
        model = self.model
        # The command has opened the video too, and has said what there is to say.
        logging.disable(logging.WARNING)
        try:
            source = video()
        finally:
            logging.disable(logging.NOTSET)
        return model.predict(source, progress=advance, **options)


_process: _Process | None = None


def _start(load: Callable[[], L2G], stopped: Any, reports: Any, threads: int) -> None:
    """Prepares a process, which ends with its parent; the parent alone handles interrupts."""
    global _process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _process = _Process(load, stopped, reports)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _predict(name: str, video: Callable[[], Source], options: Mapping[str, Any]) -> Prediction:
    assert _process is not None
    return _process.predict(name, video, options)
