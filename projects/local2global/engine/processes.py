"""Distributed training: process group, collective operations and launch command.

With one process, every collective operation returns its input.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError

# Other processes wait for the first process while it computes scores, which may take long.
TIMEOUT = timedelta(hours=3)

# Environment variable with the process id of the launcher.
_LAUNCHER = "L2G_LAUNCHER"


def rank() -> int:
    """The rank of this process; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(device: str) -> torch.device:
    """Initialise the process group if torchrun started this process; later calls only return the device.

    The group is never destroyed: torch cannot initialise it twice, and destroying it after a process has failed may
    hang.

    Args:
        device: "cpu" or "cuda"; with several processes, each uses the GPU of its local rank.

    Returns:
        The device of this process.

    Raises:
        UserError: if the device does not exist.
    """
    place = _device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        _end_with_launcher()
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=TIMEOUT)
    return place


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def reduce(values: Sequence[float] | Tensor, device: torch.device, operation: str = "sum") -> list[float]:
    """Elementwise "sum", "mean" or "max" over processes; a tensor costs one device synchronisation."""
    if world_size() == 1 and not isinstance(values, Tensor):
        return list(values)
    precision = torch.float32 if device.type == "mps" else torch.float64
    tensor = values if isinstance(values, Tensor) else torch.tensor(list(values), dtype=precision)
    tensor = tensor.to(device, precision)
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX if operation == "max" else dist.ReduceOp.SUM)
        if operation == "mean":
            tensor = tensor / world_size()
    numbers: list[float] = tensor.tolist()
    return numbers


def gather(value: Any) -> list[Any]:
    """The values of all processes, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def peer_errors(run: object) -> Iterator[None]:
    """Raise errors of collective operations as one line: another process of the run has ended.

    Args:
        run: the run's folder, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not re.search(r"gloo|NCCL|[Cc]onnection (closed|reset)", str(error)):
            raise
        raise UserError(f"{run}: another process of this run has ended. Continue with --resume.") from error


def launch_command(
    script: Sequence[str],
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> list[str]:
    """The command that runs a script in several processes under torchrun, without torchrun's traceback.

    Args:
        script: the script or `-m module`, and its arguments.
        processes: number of processes on this machine.
        machines: total number of machines.
        machine_rank: rank of this machine.
        dist_url: tcp://host:port of machine 0; "auto" for one machine.

    Raises:
        UserError: if there are several machines and `dist_url` has no host and port.
    """
    run = [sys.executable, "-m", __spec__.name, f"--nproc-per-node={processes}"]
    if machines == 1:
        return [*run, "--standalone", *script]
    host, _, port = dist_url.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--dist-url {dist_url}: several machines need tcp://HOST:PORT of machine 0.")
    rendezvous = [
        f"--nnodes={machines}",
        f"--node-rank={machine_rank}",
        f"--master-addr={host}",
        f"--master-port={port}",
    ]
    return [*run, *rendezvous, *script]


def _end_with_launcher() -> None:
    """Watch torchrun, the parent process, in a thread; end this process if the parent is killed.

    torchrun stops its processes unless it is killed by SIGKILL.  They would then continue to train.
    """
    parent = int(os.environ.get(_LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with suppress(OSError):
            os.write(2, b"l2g: the launcher was killed, so this process ends. Continue with --resume.\n")
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def launch() -> None:
    """Run torchrun with this command line and exit with the code of the first process that failed.

    A failed process prints its own error; only death by a signal is reported here.  After SIGINT or SIGTERM, which
    torchrun forwards, the exit code is 128 plus the signal's number.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ[_LAUNCHER] = str(os.getpid())
    logging.disable(logging.ERROR)
    try:
        main()
    except (SignalException, KeyboardInterrupt) as error:
        sys.exit(128 + int(getattr(error, "sigval", signal.SIGINT)))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(
                f"l2g: process {number} was killed by signal {-failure.exitcode}. Continue with --resume.\n"
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"train.device={name}: no such kind of device. Use cuda or cpu.") from error
    if device.type != "cuda":
        _try_device(device)
        return device
    if not torch.cuda.is_available():
        raise UserError(f"train.device={name}: torch finds no GPU. Add train.device=cpu.")
    if device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.index >= torch.cuda.device_count():
        raise UserError(
            f"train.device={device}: torch finds {torch.cuda.device_count()} GPUs. Start fewer processes."
        )
    return device


def _try_device(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"train.device={device}: this torch cannot compute on it. Use cuda or cpu."
        ) from error


if __name__ == "__main__":
    launch()
