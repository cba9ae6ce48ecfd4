"""`l2g train --slurm`: its options, and a job on this machine that is preempted, requeued and resumed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from local2global.app.slurm import TrainJob, parse, submit
from local2global.engine.loop import train
from local2global.errors import UserError

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import fake_run  # noqa: E402

CONFIG = """
import fake_run
_cfg = fake_run.config({folder!r}, *{overrides!r})
model, optimizer, lr_multiplier, dataloader, train = (
    _cfg[key] for key in ("model", "optimizer", "lr_multiplier", "dataloader", "train")
)
"""
OVERRIDES = ("train.max_iter=60", "train.checkpointer.period=1000")


def test_options_are_numbers_and_names():
    assert parse("partition=gpu,nodes=2,gpus=8") == {
        "nodes": 2,
        "gpus": 8,
        "cpus": 8,
        "minutes": 1440,
        "cluster": "slurm",
        "partition": "gpu",
    }


@pytest.mark.parametrize("text", ["gpu", "nodes=two", "gpus=0", "=3", "", "gpus=1,", "cluster=moon"])
def test_a_wrong_option_is_one_line(text):
    with pytest.raises(UserError, match=r"^--slurm .*expected"):
        parse(text)


def test_an_option_that_is_given_twice_is_refused():
    with pytest.raises(UserError, match=r"^--slurm gpus=1,gpus=2: gpus is given twice"):
        parse("gpus=1,gpus=2")


def write_config(folder: Path, run: Path, *overrides: str) -> Path:
    path = folder / "config.py"
    path.write_text(CONFIG.format(folder=str(run), overrides=(*OVERRIDES, *overrides)))
    return path


def test_a_machine_without_slurm_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^--slurm partition=gpu: .*srun"):
        submit("partition=gpu", write_config(tmp_path, tmp_path / "run"), [], False, False)


def test_a_requeued_job_resumes_and_replaces_nothing():
    pytest.importorskip("submitit")
    again = TrainJob("c.py", ("a=1",), overwrite=True).checkpoint().function
    assert again == TrainJob("c.py", ("a=1",), resume=True, overwrite=False)


def processes_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
def test_a_preempted_job_of_two_processes_is_requeued_and_ends_like_an_uninterrupted_run(
    tmp_path, monkeypatch
):
    """SIGUSR2 after some iterations, as Slurm sends it; the periodic checkpoint is never reached before."""
    pytest.importorskip("submitit")
    path = os.pathsep.join([str(HERE), str(HERE.parent / "projects"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = tmp_path / "run"
    config = write_config(tmp_path, run, "model.pause=0.05")
    job = submit("cluster=local,gpus=2,minutes=30", config, [], False, False)
    while not (run / "metrics.jsonl").is_file() or len(fake_run.curve(run)) < 5:
        assert not job.done(), job.paths.stderr.read_text()
        time.sleep(0.2)
    for process in processes_of(int(job.job_id)):
        os.kill(process, signal.SIGUSR2)
    job.results()
    log = job.paths.stderr.read_text()
    assert "interrupted; saved" in log
    assert "resume  " in log
    train(fake_run.config(tmp_path / "whole", *OVERRIDES))
    one, two = fake_run.curve(tmp_path / "whole"), fake_run.curve(run)
    assert [entry["iteration"] for entry in two] == list(range(60))
    assert [entry["total_loss"] for entry in two] == pytest.approx(
        [entry["total_loss"] for entry in one], rel=1e-4
    )
