"""`l2g ablate`: the grid of settings, reuse and resumption of runs, and the statistics of the table."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

from local2global.app import ablate as module
from local2global.app.ablate import Row, ablate, grid, interval, plan, summarise
from local2global.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIG = """
import fake_run
from omegaconf import OmegaConf

_cfg = fake_run.config("{folder}", "train.max_iter=4", "train.checkpointer.period=2", "train.seed=5")
model, optimizer, lr_multiplier = _cfg.model, _cfg.optimizer, _cfg.lr_multiplier
dataloader, train = OmegaConf.to_container(_cfg.dataloader), _cfg.train
"""


@pytest.fixture
def config(tmp_path):
    """A config that fits y = w x + b in four steps."""
    path = tmp_path / "line.py"
    path.write_text(CONFIG.format(folder=tmp_path / "line"))
    return path


@pytest.fixture
def started(monkeypatch):
    """The folders of all runs that were started, in order."""
    folders, train = [], module._train
    monkeypatch.setattr(
        module, "_train", lambda config, run, *rest: (folders.append(run.folder), train(config, run, *rest))
    )
    return folders


# --- The grid ---


def test_keys_with_several_values_are_expanded_to_a_grid():
    settings = grid(["a.x=1,2", "b=7", "c.y=u,v"])
    assert [setting.name for setting in settings] == ["x=1,y=u", "x=1,y=v", "x=2,y=u", "x=2,y=v"]
    assert settings[1].overrides == ("b=7", "a.x=1", "c.y=v")
    assert settings[1].values == {"a.x": "1", "c.y": "v"}


def test_a_list_is_one_value():
    assert [setting.overrides for setting in grid(["a=[1,2],[3]"])] == [("a=[1,2]",), ("a=[3]",)]
    assert [setting.name for setting in grid(["a=[1,2]"])] == ["config"]


def test_keys_with_the_same_last_part_are_named_in_full():
    first = next(iter(grid(["a.dim=1", "a.x=1,2", "b.x=3,4"])))
    assert first.name == "a.x=1,b.x=3"


@pytest.mark.parametrize(
    ("overrides", "message"), [(["a=1,2", "a=3,4"], "swept twice"), (["a"], "'a' is not an override")]
)
def test_invalid_overrides_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        grid(overrides)


def test_rows_are_named_and_the_grid_is_repeated_for_each():
    rows = ["baseline=a.x=null b=static", "aligner='b=static'", "ours="]
    settings = grid(["c=7"], rows)
    assert [setting.name for setting in settings] == ["baseline", "aligner", "ours"]
    assert [setting.overrides for setting in settings] == [
        ("c=7", "a.x=null", "b=static"),
        ("c=7", "b=static"),
        ("c=7",),
    ]
    assert settings[0].values == {"row": "baseline"}
    assert [setting.name for setting in grid(["c=7,8"], rows[1:])] == [
        "aligner,c=7",
        "aligner,c=8",
        "ours,c=7",
        "ours,c=8",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["baseline"], "expected NAME="),
        (["..=a=1"], "expected NAME="),
        (["x=a=1", "x=a=2"], "two rows called x"),
        (["x=a=1,2"], "one value per key"),
        (["x=a"], "'a' is not an override"),
        (["x='a=1"], "No closing quotation"),
    ],
)
def test_an_invalid_row_is_refused(rows, message):
    with pytest.raises(UserError, match=message):
        grid([], rows)


def test_a_row_must_not_set_a_swept_key():
    with pytest.raises(UserError, match=r"--row ours: model\.x is also swept"):
        grid(["model.x=1,2"], ["ours=model.y=1 model.x=3"])


def test_settings_share_seeds_and_have_separate_folders(config, tmp_path):
    runs = plan(config, ["optimizer.lr=0.1,0.2"], 2, tmp_path / "out")
    assert [(run.setting.name, run.seed) for run in runs] == [
        ("lr=0.1", 5), ("lr=0.2", 5), ("lr=0.1", 6), ("lr=0.2", 6)
    ]  # fmt: skip
    assert [run.cfg.optimizer.lr for run in runs] == [0.1, 0.2, 0.1, 0.2]
    assert len({run.folder for run in runs}) == 4
    assert all(run.cfg.train.output_dir == str(run.folder) for run in runs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1,2", r"no key 'optimizer\.lrr'"),
        ("train.log_period=0", r"train\.log_period=0: expected a positive whole number"),
        (
            "dataloader.train.batch=${train.output_dir},2",
            r"dataloader\.train\.batch=.*: expected a whole number",
        ),
        ("+dataloader.evaluator.truht=x", r"dataloader\.evaluator: Evaluator has no parameter 'truht'"),
    ],
)
def test_a_mistake_in_one_setting_is_refused_before_training(config, tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        ablate(config, [override], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- The runs ---


def test_an_ablation_trains_scores_and_writes_its_tables(config, tmp_path):
    out = tmp_path / "out"
    table = ablate(config, ["optimizer.lr=0.05,0.5"], 2, out).read_text()
    assert table.startswith(f"`l2g ablate {config} optimizer.lr=0.05,0.5 --seeds 2 --output {out}`")
    assert "| optimizer.lr | seeds | error | error against the first [95 %] |" in table
    rows = list(csv.DictReader((out / "ablation.csv").open()))
    assert [(row["optimizer.lr"], row["score"], row["seeds"]) for row in rows] == [
        ("0.05", "line/error", "2"),
        ("0.5", "line/error", "2"),
    ]
    assert float(rows[1]["difference"]) == pytest.approx(float(rows[1]["mean"]) - float(rows[0]["mean"]))
    assert rows[0]["difference"] == ""


def test_finished_runs_are_reused_and_new_seeds_are_added(config, tmp_path, started):
    ablate(config, ["optimizer.lr=0.05"], 1, tmp_path / "out")
    first = (tmp_path / "out" / "ablation.csv").read_text()
    ablate(config, ["optimizer.lr=0.05"], 1, tmp_path / "out")
    assert len(started) == 1
    assert (tmp_path / "out" / "ablation.csv").read_text() == first
    ablate(config, ["optimizer.lr=0.05"], 2, tmp_path / "out")
    assert [folder.name for folder in started] == ["seed5", "seed6"]


def test_an_interrupted_ablation_resumes_to_the_same_table(config, tmp_path):
    """Each run is interrupted in its third step; the repeated command resumes it."""
    whole = ablate(config, ["optimizer.lr=0.05,0.5"], 1, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ablate(config, ["optimizer.lr=0.05,0.5", "+model.events.2=SIGINT"], 1, tmp_path / "stopped")
    again = ablate(config, ["optimizer.lr=0.05,0.5", "+model.events.2=SIGINT"], 1, tmp_path / "stopped")
    assert again.with_suffix(".csv").read_text() == whole.with_suffix(".csv").read_text()


def test_a_folder_with_a_run_of_another_config_is_refused(config, tmp_path):
    ablate(config, ["optimizer.lr=0.05"], 1, tmp_path / "out")
    with pytest.raises(UserError, match=r"a run of another config: train\.max_iter was 4, not 6\..*--output"):
        ablate(config, ["optimizer.lr=0.05", "train.max_iter=6"], 1, tmp_path / "out")


def test_a_failed_run_does_not_stop_the_others(config, tmp_path):
    with pytest.raises(
        UserError, match=r"1 of 2 runs failed: \[1/2\] 1=refuse, seed 5\. The others are saved"
    ):
        ablate(config, ["+model.events.1=refuse,nothing"], 1, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "ablation.csv").open()))
    assert [row["+model.events.1"] for row in rows] == ["nothing"]


# --- The table ---


def test_the_confidence_interval_is_students_t():
    """Differences 1, 2, 3: mean 2, deviation 1, t(.975, 2) = 4.3027 -> 2 +- 4.3027 / sqrt(3)."""
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert interval([1.5])[0] == 1.5
    assert all(math.isnan(end) for end in interval([1.5])[1:])


def test_differences_are_paired_by_seed():
    """Scores vary a lot between seeds but differ by 1 between settings: large spread, narrow interval."""
    results = {
        "a": {1: {"t/AP": 10.0}, 2: {"t/AP": 30.0}, 3: {"t/AP": 50.0}},
        "b": {1: {"t/AP": 11.1}, 2: {"t/AP": 31.0}, 3: {"t/AP": 50.9}},
    }
    first, second = summarise(results)
    assert (first.mean, first.spread, first.verdict) == (30.0, 20.0, "")
    assert second.difference == pytest.approx(1.0)
    assert (second.low, second.high) == pytest.approx((1 - 0.248414, 1 + 0.248414), abs=1e-5)
    assert second.verdict == "higher"


def test_only_common_seeds_are_compared():
    results = {"a": {1: {"t/AP": 1.0}, 2: {"t/AP": 5.0}}, "b": {2: {"t/AP": 4.0}, 3: {"t/AP": 9.0}}}
    assert (summarise(results)[1].seeds, summarise(results)[1].difference) == (2, -1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 2, "higher"), (-2, -0.1, "lower"), (-1, 2, "inconclusive")]
)
def test_the_verdict_needs_an_interval_without_zero(low, high, verdict):
    assert Row("b", "t/AP", 3, 0.0, 1.0, 0.5, low, high).verdict == verdict
