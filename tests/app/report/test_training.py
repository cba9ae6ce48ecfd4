"""Curves of trainings: groups, overlaid runs, and damaged files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from local2global.app.report.training import group, is_training, read_metrics, write_curves
from local2global.errors import UserError


def write_run(folder: Path, losses: list[float]) -> Path:
    folder.mkdir()
    lines = [
        {
            "iteration": 20 * i + 19,
            "total_loss": loss,
            "loss_cls": loss / 2,
            "loss_cls_0": loss / 3,
            "lr": 1e-4,
        }
        for i, loss in enumerate(losses)
    ]
    lines.append({"iteration": 20 * len(losses) - 1, "segm/AP": 42.5, "segm/AP50": 60.0, "grad_norm": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("name", "chart"),
    [
        ("loss_cls", "loss_cls"),
        ("loss_cls_2", "loss_cls"),
        ("loss_cls_local", "loss_cls"),
        ("total_loss", "total loss"),
        ("segm/AP50", "segm"),
        ("ema_segm/AP", "ema_segm"),
        ("lr", "learning rate"),
        ("memory_mb", "memory in MB"),
    ],
)
def test_values_are_grouped(name, chart):
    assert group(name) == chart


def test_two_runs_share_their_charts(tmp_path):
    runs = [
        write_run(tmp_path / name, losses) for name, losses in (("first", [9.0, 4.0]), ("second", [8.0, 6.0]))
    ]
    page = write_curves(runs)
    assert page == runs[0] / "report.html"
    text = page.read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text) == ["total loss", "loss_cls", "segm", "learning rate"]
    charts = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["charts"]
    assert charts[0]["curves"][1] == {"run": 1, "name": "total_loss", "points": [[19, 8.0], [39, 6.0]]}
    assert text.count('class="line main"') == 8
    assert "last value: first 4, second 6" in text


def test_the_highest_value_is_at_the_top_and_zero_at_the_bottom(tmp_path):
    text = write_curves([write_run(tmp_path / "run", [10.0, 0.0])]).read_text(encoding="utf-8")
    assert 'd="M46.0 0.0L420.0 180.0"' in text


def test_a_single_value_is_a_line_and_undefined_scores_are_left_out(tmp_path):
    """The run is evaluated once; no object is of medium size."""
    run = write_run(tmp_path / "run", [10.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 19, "segm/APm": -1, "loss_box": -1}) + "\n")
    text = write_curves([run]).read_text(encoding="utf-8")
    assert text.count("H420") >= text.count('class="line') > 3
    assert "segm/APm" not in text
    assert "loss_box" in text


def test_small_values_have_an_exponent(tmp_path):
    """Labels of the axis have a narrow margin."""
    text = write_curves([write_run(tmp_path / "run", [10.0, 0.0])]).read_text(encoding="utf-8")
    assert ">1.0e-4</text>" in text


def test_long_curves_are_thinned_out_and_keep_their_end(tmp_path):
    text = write_curves([write_run(tmp_path / "run", [1.0] * 5000)]).read_text(encoding="utf-8")
    charts = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["charts"]
    points = charts[0]["curves"][0]["points"]
    assert len(points) < 500
    assert points[-1][0] == 99999


def test_an_incomplete_last_line_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", [3.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 39, "total')
    assert read_metrics(folder / "metrics.jsonl")["total_loss"] == [(19, 3.0)]


@pytest.mark.parametrize("content", ["", "[]\n", "{}\n", '{"iteration": "x"}\n', "no json\n"])
def test_damaged_metrics_are_one_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert is_training(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl: no entry of a training's metrics"):
        write_curves([tmp_path])


def test_a_hostile_name_is_text(tmp_path):
    folder = tmp_path / "<img src=x>"
    text = write_curves([write_run(folder, [1.0])]).read_text(encoding="utf-8")
    assert "<img src=x>" not in text
