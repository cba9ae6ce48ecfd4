"""Trainings and predictions killed at random moments lose nothing and leave no other files after the next run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TRAININGS = int(os.environ.get("L2G_TRAINING_KILLS", "100"))
PREDICTIONS = int(os.environ.get("L2G_PREDICTION_KILLS", "50"))


@pytest.mark.slow
def test_random_kills_lose_nothing(tmp_path):
    """`make kills` prints a line per case."""
    path = os.pathsep.join([str(HERE.parents[1] / "projects"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "random_kills.py"), str(tmp_path), str(TRAININGS), str(PREDICTIONS)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    sys.stdout.write(result.stdout)
    cases = [json.loads(line) for line in result.stdout.splitlines()]
    assert sum(case["kills"] for case in cases if case["run"] == "train") >= TRAININGS
    assert sum(case["run"] == "predict" for case in cases) == PREDICTIONS
    assert [case for case in cases if case["lost"] or case["debris"]] == []
