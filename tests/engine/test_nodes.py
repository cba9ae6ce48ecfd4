"""Two nodes on one machine: equality with one process, a killed node, and a resume with another world size."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from local2global.engine.loop import train
from local2global.engine.processes import launch_command
from local2global.weights.checkpoint import load_checkpoint

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import fake_run  # noqa: E402
import real_run  # noqa: E402

torch.set_num_threads(1)

TIMEOUT = 600


def start(command: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "projects"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model_final.pth")["model"]


@pytest.mark.slow
def test_two_nodes_of_two_processes_are_one_process(tmp_path):
    """One gradient step on four clips of 5, 0, 3 and 1 instances: the second process has none."""
    instances = [5, 0, 3, 1]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test"]
    script = [str(TESTS / "real_run.py"), str(tmp_path / "nodes"), str(instances)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    nodes = [start([*torchrun, *rendezvous, *script]) for _ in range(2)]
    for node in nodes:
        _, errors = node.communicate(timeout=TIMEOUT)
        assert node.returncode == 0, errors
    one, four = tmp_path / "one", tmp_path / "nodes" / str(instances)
    train(real_run.with_sgd(real_run.config(one, instances)), progress=Console(file=io.StringIO()))
    assert len(load_checkpoint(four / "model_final.pth")["random"]) == 4
    (expected,), (found,) = fake_run.curve(one), fake_run.curve(four)
    for name in (name for name in expected if "loss" in name):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    ours, theirs = weights(one), weights(four)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_after_a_node_is_killed_the_other_ends_with_one_line_and_one_process_resumes(tmp_path):
    """The resumed run has half as many processes; its losses equal those of an uninterrupted run."""
    settings = ["train.max_iter=40", "train.checkpointer.period=10", "train.clip_grad.enabled=True"]
    script = [str(TESTS / "fake_run.py"), str(tmp_path / "run"), *settings, "model.pause=0.3"]
    url = f"tcp://127.0.0.1:{free_port()}"
    nodes = [start(launch_command(script, 1, 2, node, url)) for node in range(2)]
    marker, deadline = tmp_path / "run" / "last_checkpoint", time.monotonic() + TIMEOUT
    while not marker.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    nodes[1].send_signal(signal.SIGKILL)  # its process ends with it
    _, errors = nodes[0].communicate(timeout=TIMEOUT)
    nodes[1].communicate(timeout=TIMEOUT)
    assert nodes[0].returncode == 1
    assert re.search(r"run: another process of this run has ended. Continue with --resume", errors)
    assert "Traceback" not in errors
    console = Console(file=io.StringIO())
    train(fake_run.config(tmp_path / "run", *settings), resume=True, progress=console)
    train(fake_run.config(tmp_path / "whole", *settings), progress=console)
    resumed, whole = fake_run.curve(tmp_path / "run"), fake_run.curve(tmp_path / "whole")
    assert [entry["iteration"] for entry in resumed] == list(range(40))
    losses = [entry["total_loss"] for entry in whole]
    assert [entry["total_loss"] for entry in resumed] == pytest.approx(losses, rel=1e-4)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-4, atol=1e-5)
