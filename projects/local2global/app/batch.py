"""Many videos at a time: while one is in the model, others are decoded, drawn and written.

Each video goes through `L2G.predict` as it would alone, in its own thread; the model takes one frame at a time.  So
results are those of one by one, and a video that fails takes no other with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from .predict import Prediction, Progress
from .video import Source

TOGETHER = 3  # videos under way: one in the model, one before it, one behind it

Predict = Callable[[Source, Progress], Prediction]


class _Stopped(BaseException):
    """What ends a video that nobody waits for any more; not an error of its own."""


def predict_batch(
    predict: Predict,
    sources: Sequence[Source],
    together: int = TOGETHER,
    progress: Callable[[Source], None] | None = None,
) -> Generator[tuple[Source, Prediction | Exception], None, None]:
    """Predicts every source, a few at a time.

    Closing the iterator, or an interrupt, stops the videos under way at their next frame; they leave nothing behind.

    Args:
        predict: writes one video's results; it is called from threads, with the progress it must report.
        sources: the videos, begun in this order.
        together: how many may be under way.
        progress: called after every frame of any video, from its thread.

    Yields:
        Every source with its prediction, or with the error that ended it, as they end.
    """
    stopped = threading.Event()

    def one(source: Source) -> Prediction:
        def advance(done: int, total: int | None, live: int) -> None:
            del done, total, live
            if stopped.is_set():
                raise _Stopped
            if progress is not None:
                progress(source)

        if stopped.is_set():
            raise _Stopped
        return predict(source, advance)

    with ThreadPoolExecutor(together, thread_name_prefix="l2g-video") as pool:
        futures: dict[Future[Prediction], Source] = {pool.submit(one, source): source for source in sources}
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
