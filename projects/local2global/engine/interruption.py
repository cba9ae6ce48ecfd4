"""Signal handling: SIGINT, SIGTERM and SIGUSR2 end a training, after which a checkpoint is saved.

A training step is finished first, and an evaluation ends after the current video.  Slurm sends SIGUSR2 before it ends
a job (`--signal=USR2@180`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from ..errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR2,) if hasattr(signal, "SIGUSR2") else ()))

# torchrun forwards Ctrl-C to processes that already received it from the terminal.  A second signal within this
# time (in seconds) is such a duplicate.
DUPLICATE_WINDOW = 2.0


class InterruptedEvaluation(Exception):  # noqa: N818 - like KeyboardInterrupt, not an error
    """A signal ended an evaluation, on all processes, before its scores were known."""


class Interruption:
    """Records `SIGNALS` inside a `with`; a second signal has the effect that it had before.

    Raises:
        UserError: at the end of the `with`, if a signal also ended data-loading workers of a step.

    Attributes:
        requested: this process received a signal.
        received: the signal, SIGUSR2 if it was among several; None before.
        agreed: some process received a signal; equal on all processes (the trainer synchronises it).
    """

    def __init__(self) -> None:
        self.requested = False
        self.received: signal.Signals | None = None
        self.agreed = False
        self._first = 0.0
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # Workers may have ended before this process received the signal.
        if self.requested and isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise UserError(
                "a signal ended the training, and its data-loading workers before the step was complete. "
                "Continue with --resume."
            ) from error

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked data-loading worker inherits this handler.  It ignores Ctrl-C until the step is finished
            # and exits on SIGTERM.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.requested and time.monotonic() - self._first > DUPLICATE_WINDOW:
            signal.signal(number, self._previous[signal.Signals(number)])
            signal.raise_signal(number)
        if not self.requested and hasattr(signal, "SIGCHLD"):
            # The signal may also end the data-loading workers.  torch would raise that within the step.
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._first = self._first if self.requested else time.monotonic()
        self.requested = True
        if self.received is None or number == SIGNALS[-1]:  # Slurm may send SIGTERM beside SIGUSR2
            self.received = signal.Signals(number)
