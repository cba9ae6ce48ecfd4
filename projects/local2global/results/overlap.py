"""Overlap of the model and its postprocessing: on a GPU a frame is postprocessed while the next one is computed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_behind(
    items: Iterable[Item], take: Callable[[Item], Result], device: torch.device
) -> Generator[Result, None, None]:
    """Applies `take` to each item in order.  On a GPU it runs while the device computes the next item.

    If an item raises, the results of all items before it are yielded first.

    Args:
        items: iterated on the device's current stream.
        take: runs on a separate stream and synchronises it, e.g. `VideoPostprocessor.update`.
        device: the device that computes the items.

    Yields:
        the results of `take`.
    """
    if device.type == "cpu":
        yield from map(take, items)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pending: list[tuple[Item, torch.cuda.Event]] = []

    def finish() -> Result:
        item, ready = pending.pop()
        side.wait_event(ready)
        with torch.cuda.stream(side):
            return take(item)

    source = iter(items)
    while True:
        try:
            item = next(source)
        except Exception as end:  # StopIteration or an error; emit the pending item first
            if pending:
                yield finish()
            if isinstance(end, StopIteration):
                return
            raise
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ready.record(torch.cuda.current_stream(device))
        pending.insert(0, (item, ready))
        if len(pending) > 1:
            yield finish()
