"""A training killed at any access to its files resumes to the same run, and leaves no partial files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from local2global.weights.checkpoint import load_checkpoint  # noqa: E402

CLOCKS = ("time", "data_time", "eta_seconds", "speed/frames_per_second", "ema_speed/frames_per_second")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(point, folder) of every killed and resumed training, and the folder of the whole one."""
    root = tmp_path_factory.mktemp("faults")
    path = os.pathsep.join(
        [str(HERE.parent), str(HERE.parents[1] / "projects"), os.environ.get("PYTHONPATH", "")]
    )
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "killed_run.py"), str(root)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    whole, *killed = map(json.loads, result.stdout.splitlines())
    assert all(entry["killed"] for entry in killed)
    return [(entry["point"], root / entry["folder"]) for entry in killed], root / whole["folder"]


def entries(folder):
    """metrics.jsonl without clocks."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def files(folder):
    """The files of a run but TensorBoard's, which a resumed run adds to."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name
    )


def test_every_kind_of_file_is_interrupted(runs):
    points = [point.split(": ", 1)[1] for point, _ in runs[0]]
    for name in (
        "config.yaml.l2g-tmp",
        "versions.json.l2g-tmp",
        "metrics.jsonl",
        "model_0000001.pth.l2g-tmp",
        "model_final.pth.l2g-tmp",
    ):
        assert {f"before open {name}", f"while writing {name}"} <= set(points)
    for name in (
        "config.yaml.l2g-tmp",
        "model_0000003.pth.l2g-tmp",
        "model_final.pth.l2g-tmp",
        "last_checkpoint.l2g-tmp",
    ):
        assert f"before os.rename {name}" in points
    assert "before os.remove model_0000001.pth" in points
    assert "while writing results.json" in points


def test_a_resumed_run_logs_what_the_uninterrupted_run_logs(runs):
    killed, whole = runs
    assert {point for point, folder in killed if entries(folder) != entries(whole)} == set()


def test_a_resumed_run_has_the_same_weights(runs):
    killed, whole = runs
    expected = load_checkpoint(whole / "model_final.pth")
    for point, folder in killed:
        content = load_checkpoint(folder / "model_final.pth")
        for key in ("model", "ema_state"):
            assert all(torch.equal(content[key][name], expected[key][name]) for name in expected[key]), point
        assert content["iteration"] == expected["iteration"]


def test_a_resumed_run_leaves_no_other_files(runs):
    killed, whole = runs
    different = {point: sorted(set(files(folder)) ^ set(files(whole))) for point, folder in killed}
    assert {point: names for point, names in different.items() if names} == {}
