"""Parallel prediction: while the model processes one video, others are decoded, drawn and encoded.

Each video runs through `L2G.predict` in its own thread, and a lock lets the model process one frame at a time.  So
the results equal those of sequential prediction, and the failure of a video does not affect the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Protocol

from .predict import Progress
from .result_folder import Prediction
from .video import Source

CONCURRENCY = 3  # videos at a time with --batch: one in the model, one being decoded, one being encoded


class Predict(Protocol):
    """Writes the results of one video, as `L2G.predict` does."""

    def __call__(self, source: Source, *, progress: Progress) -> Prediction:
        """Calls `progress` after every frame."""


def predict_one_by_one(
    predict: Predict, sources: Iterable[Source], progress: Callable[[Source, int, int], None]
) -> Generator[tuple[Source, Prediction | Exception], None, None]:
    """Predicts the sources in turn, in the calling thread, so that an interrupt reaches a source that waits.

    Args:
        predict: writes the results of one video.
        sources: the videos.
        progress: called with (source, frames done, objects on the frame).

    Yields:
        each source with its prediction.  Exceptions are raised.
    """
    for source in sources:

        def advance(done: int, total: int | None, objects: int, source: Source = source) -> None:
            del total
            progress(source, done, objects)

        yield source, predict(source, progress=advance)


class _CancelledError(BaseException):
    """Raised inside the thread of a video to stop it."""


def predict_batch(
    predict: Predict,
    sources: Sequence[Source],
    concurrency: int = CONCURRENCY,
    progress: Callable[[Source, int, int], None] | None = None,
) -> Generator[tuple[Source, Prediction | Exception], None, None]:
    """Predicts several sources at a time.

    Closing the generator or an interrupt stops the running videos at their next frame, and their files are deleted.

    Args:
        predict: writes the results of one video; called from threads.
        sources: the videos, started in this order.
        concurrency: maximal number of running videos.
        progress: called from the thread of a video with (source, frames done, objects on the frame).

    Yields:
        each source with its prediction or its exception, in order of completion.
    """
    stopped = threading.Event()

    def run(source: Source) -> Prediction:
        def advance(done: int, total: int | None, objects: int) -> None:
            del total
            if stopped.is_set():
                raise _CancelledError
            if progress is not None:
                progress(source, done, objects)

        if stopped.is_set():
            raise _CancelledError
        return predict(source, progress=advance)

    with ThreadPoolExecutor(concurrency, thread_name_prefix="l2g-video") as pool:
        futures: dict[Future[Prediction], Source] = {pool.submit(run, source): source for source in sources}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], future.result() if error is None else error
        finally:
            stopped.set()
            for future in futures:
                future.cancel()
