"""Ray actors that work through tasks: failed tasks are repeated, dead actors are replaced."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from ...errors import UserError, first_line

ATTEMPTS = 5  # of a task, until it counts as failed
PAUSE = 1.0  # seconds before the second attempt, doubled before every further one
_LONGEST_PAUSE = 60.0
_ANSWER = 10.0  # seconds in which the head node must accept a connection
_FAILED_STARTS = 10  # actors in a row that do not start: the cluster is broken

Task = TypeVar("Task")


@contextmanager
def connected(address: str, workers: int | None) -> Iterator[None]:
    """Connects to a Ray cluster, and disconnects at the end.

    Args:
        address: HOST:PORT of a cluster; "local" for one of this machine, which is started and stopped; "auto" for the
            running cluster of this machine or of RAY_ADDRESS, or else as "local".
        workers: actors that a local cluster must have room for.

    Raises:
        UserError: if Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install 'local2global[cluster]'") from error
    if ray.is_initialized():
        yield
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    cores = max(workers or 1, os.cpu_count() or 1)
    if address == "local":
        _start_local(cores, quiet)
    else:
        if address != "auto":
            _check_reachable(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if address != "auto":
                raise UserError(f"--ray {address}: no Ray cluster answers ({first_line(error)})") from error
            _start_local(cores, quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that a server listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        UserError: if none does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if not parts.hostname or not parts.port:
            raise UserError(f"--ray {address}: expected HOST:PORT, local or auto")
        socket.create_connection((parts.hostname, parts.port), _ANSWER).close()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"--ray {address}: no Ray cluster answers ({error})") from error


def _start_local(cores: int, quiet: dict[str, Any]) -> None:
    import ray

    try:
        ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=1 << 27, **quiet)
    except Exception as error:  # Ray raises no class of its own
        raise UserError(f"--ray: Ray cannot be started on this machine: {first_line(error)}") from error


def resources_of(device: str | None) -> dict[str, float]:
    """What an actor reserves: a GPU if the cluster has any and `device` allows it, else a CPU.

    Raises:
        UserError: if a GPU is asked for and the cluster has none.
    """
    import ray

    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    if device is not None and device.startswith("cuda") and not has_gpu:
        raise UserError(f"device {device}: the Ray cluster has no GPU; use cpu")
    return {"num_gpus": 1} if has_gpu and device != "cpu" else {"num_cpus": 1}


def capacity(resources: dict[str, float]) -> int:
    """Number of actors that the cluster has room for today; at least 1."""
    import ray

    name = "GPU" if "num_gpus" in resources else "CPU"
    return max(1, int(ray.cluster_resources().get(name, 0)))


@dataclass(order=True)
class _Attempt(Generic[Task]):
    """A task, and when it may run again."""

    due: float
    number: int
    task: Task = field(compare=False)
    failures: int = field(default=0, compare=False)


class Pool:
    """Actors of one class, each with its own model; a context manager that stops them.

    Args:
        worker: class of the actors.  Its method `load` is called first; a UserError raised there ends the run.
        arguments: of its constructor.
        count: number of actors.  Those that the cluster has no room for start when there is room.
        resources: what an actor reserves, `num_cpus` or `num_gpus`.
    """

    def __init__(
        self, worker: type, arguments: Sequence[Any], count: int, resources: dict[str, float]
    ) -> None:
        """Starts the actors; returns before they have loaded."""
        import ray

        self._class = ray.remote(max_restarts=0, **resources)(worker)
        self._arguments = [ray.put(argument) for argument in arguments]
        self._starting: dict[Any, Any] = {}  # actors by the reference to the result of `load`
        self._idle: deque[Any] = deque()
        self._running: dict[Any, tuple[Any, _Attempt[Any]]] = {}
        self._failed_starts = 0
        self._numbers = itertools.count()
        for _ in range(count):
            self._start()

    @property
    def ready(self) -> int:
        """Number of actors that have loaded."""
        return len(self._idle) + len(self._running)

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Calls a method of the actors with every task, one task per actor at a time.

        A task is read when an actor is free, so a long list may be lazy.  A task is repeated if its actor dies or
        raises anything but a UserError, at most `ATTEMPTS` times and with growing pauses.

        Args:
            method: name of the method.
            tasks: its argument.

        Yields:
            each task with its result or its exception, in order of completion.

        Raises:
            UserError: if no actor can be started.
        """
        fresh = (_Attempt(0.0, next(self._numbers), task) for task in tasks)
        upcoming = next(fresh, None)
        waiting: list[_Attempt[Task]] = []
        while self._running or waiting or upcoming is not None:
            while self._idle:
                if waiting and waiting[0].due <= time.monotonic():
                    attempt = heapq.heappop(waiting)
                elif upcoming is not None:
                    attempt, upcoming = upcoming, next(fresh, None)
                else:
                    break
                actor = self._idle.popleft()
                self._running[getattr(actor, method).remote(attempt.task)] = (actor, attempt)
            for attempt, result in self._settle(waiting):
                is_final = isinstance(result, UserError) or attempt.failures == ATTEMPTS
                if isinstance(result, Exception) and not is_final:
                    attempt.due = time.monotonic() + min(PAUSE * 2 ** (attempt.failures - 1), _LONGEST_PAUSE)
                    heapq.heappush(waiting, attempt)
                else:
                    yield attempt.task, result

    def _settle(self, waiting: Sequence[_Attempt[Task]]) -> Iterator[tuple[_Attempt[Task], Any]]:
        """Waits for one actor, or until an attempt is due; yields the attempt that has ended, with its result."""
        import ray

        pause = max(0.0, waiting[0].due - time.monotonic()) if waiting and self._idle else 1.0
        references = [*self._running, *self._starting]
        if not references:
            time.sleep(pause)
            return
        for reference in ray.wait(references, num_returns=1, timeout=min(pause, 1.0))[0]:
            if reference in self._starting:
                self._started(reference)
                continue
            actor, attempt = self._running.pop(reference)
            try:
                result = ray.get(reference)
                self._idle.append(actor)
            except ray.exceptions.RayTaskError as error:
                self._idle.append(actor)
                result = error.cause if isinstance(error.cause, Exception) else error
            except ray.exceptions.RayError as error:
                self._stop(actor)
                self._start()
                result = _LostError(f"its worker died ({first_line(error)})")
            attempt.failures += isinstance(result, Exception)
            yield attempt, result

    def _start(self) -> None:
        actor = self._class.remote(*self._arguments)
        self._starting[actor.load.remote()] = actor

    def _started(self, reference: Any) -> None:
        """An actor has loaded, or failed to."""
        import ray

        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)
            self._failed_starts += 1
            if isinstance(cause, UserError):
                raise cause from None
            if self._failed_starts == _FAILED_STARTS:
                raise UserError(
                    f"no worker can be started on the Ray cluster: {_last_line(cause)}"
                ) from error
            self._stop(actor)
            self._start()
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    @staticmethod
    def _stop(actor: Any) -> None:
        import ray

        ray.kill(actor, no_restart=True)

    def __enter__(self) -> Pool:
        """The actors have been started by the constructor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the actors, and waits until those that run a task are dead."""
        import ray

        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._running.values())]:
            self._stop(actor)
        if self._running:
            ray.wait(list(self._running), num_returns=len(self._running), timeout=10)

    @property
    def unfinished(self) -> list[Any]:
        """The tasks that are running, or were when the pool was stopped."""
        return [attempt.task for _, attempt in self._running.values()]


class _LostError(Exception):
    """A task whose actor died."""


def _last_line(error: BaseException) -> str:
    """The last line of a message, which names the exception of a constructor in Ray's."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
