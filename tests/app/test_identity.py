"""`l2g identity`: reference points and runs on small generated videos."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from local2global.app.identity import (
    Arm,
    _link_by_truth,
    _select,
    as_markdown,
    identity,
    named_runs,
    read_table,
    seeds_as_markdown,
    with_memory,
)
from local2global.errors import UserError
from local2global.lazy import load_config
from local2global.results.instances import VideoPostprocessor
from local2global.structures import FramePredictions, Queries

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = CONFIGS / "bench" / "ovis_like.py"
REFERENCES = [
    "single frames",
    "untrained propagation",
    "similarity linking",
    "IoU linking",
    "image tracker",
    "oracle linking",
]


def predictions(*masks):
    """Slot i shows `masks[i]`, (h, w) bool, with score .9."""
    count = len(masks)
    stacked = torch.stack(masks).float()[None] * 2 - 1
    return FramePredictions(
        logits=torch.full((1, count, 1), 2.2),
        boxes=torch.rand(1, count, 4),
        masks=stacked,
        extent=torch.tensor([[float(stacked.shape[-1]), float(stacked.shape[-2])]]),
        queries=Queries(torch.arange(count)[None, :, None].float(), torch.rand(1, count, 4)),
    )


def test_selected_slots_show_their_rows_and_the_others_are_empty():
    left, right = torch.eye(2, dtype=torch.bool)[:, None].expand(-1, 3, -1)
    chosen = _select(predictions(left, right), torch.tensor([1, -1, 0]))
    assert chosen.queries.embed[0, :, 0].tolist() == [1, 0, 0]
    assert torch.equal(chosen.masks[0] > 0, torch.stack([right, torch.zeros_like(left), left]))
    assert chosen.logits[0, :, 0].sigmoid().tolist() == pytest.approx([0.9, 0, 0.9], abs=0.01)


def test_the_oracle_of_a_piece_without_objects_shows_nothing():
    class Segmenter:
        def step(self, frame, past):
            return predictions(torch.ones(3, 2, dtype=torch.bool))

    class Video:
        size = (3, 2)

        def masks(self, t):
            return torch.zeros((0, 3, 2), dtype=torch.bool)

    (shown,) = _link_by_truth(Segmenter())([None], Video())
    with VideoPostprocessor((3, 2)) as post:
        assert len(post.update(shown).ids) == 0
        assert len(post.result(1)) == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config of two short videos, and weights of its untrained model without aligner."""
    cfg = load_config(CONFIG, ["model.segmenter.num_queries=10", "model.tracker.aligner=null"])
    cfg.dataloader.test.dataset.update(num_videos=2, length=4)
    from local2global.engine.settings import build

    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "model_final.pth"
    model = build(cfg, "model")
    torch.save({"model": model.state_dict(), "classes": model.classes}, weights)
    return cfg, weights


def test_references_and_runs_are_measured_and_the_table_can_be_read_again(small, tmp_path, monkeypatch):
    cfg, weights = small
    monkeypatch.setattr("local2global.app.identity.RESAMPLES", 10)
    from local2global.lazy import save_resolved

    save_resolved(cfg, weights.parent / "config.yaml")
    table = identity(cfg, weights, [weights.parent], videos=2, length=2, console=Console(quiet=True))
    assert list(table) == [*REFERENCES, str(weights.parent)]
    # The run has the weights of the reference, and no aligner.
    assert as_markdown({"": table[str(weights.parent)]}) == as_markdown({"": table["untrained propagation"]})
    for scores in table.values():
        assert {"AP", "pieces AP", "covered %", "kept %", "owner changes / 1,000"} <= scores.keys()
        value, low, high = scores["covered %"]
        assert low <= value <= high
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table))
    assert read_table(file).keys() == table.keys()
    assert as_markdown(read_table(file)) == as_markdown(table)


def test_runs_can_be_measured_with_a_memory_too(small, tmp_path, monkeypatch):
    """The memory loses nothing of the coverage except what it drops as duplicates or lost."""
    cfg, weights = small
    monkeypatch.setattr("local2global.app.identity.RESAMPLES", 10)
    folder = tmp_path / "table/method/seed0"
    folder.mkdir(parents=True)
    from local2global.lazy import save_resolved

    save_resolved(cfg, folder / "config.yaml")
    shutil.copy(weights, folder)
    table = identity(cfg, weights, [tmp_path / "table"], 2, 2, Console(quiet=True), memory=True)
    untrained = with_memory("untrained propagation")
    assert list(table) == [*REFERENCES, *untrained, "method/seed0", *with_memory("method/seed0")]
    covered = [table[name]["covered %"][0] for name in ("method/seed0", "method+memory/seed0")]
    assert covered[1] <= covered[0]


def test_an_arm_that_shows_the_truth_has_full_scores(small, monkeypatch):
    """Every object keeps its slot, is covered and owned on every frame; the AP is 100."""
    cfg, weights = small

    def stream(features, video):
        for t in range(len(features)):
            yield predictions(*video.masks(t))

    def only_truth(cfg, weights, memory):
        return {"truth": Arm(stream, references(cfg, weights)["oracle linking"].model)}

    from local2global.app import identity as module

    references = module.references
    monkeypatch.setattr(module, "RESAMPLES", 10)
    monkeypatch.setattr(module, "references", only_truth)
    table = identity(cfg, weights, [], videos=2, length=2, console=Console(quiet=True))["truth"]
    values = {name: value for name, (value, _, _) in table.items()}
    expected = {"AP": 100, "pieces AP": 100, "covered %": 100, "owned %": 100, "owner changes / 1,000": 0}
    assert {name: values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"a": 3}',
        '{"a": {"AP": [1, 2]}}',
        '{"a": {"AP": [1, 1, 1]}, "b": {}}',
        '{"a": {"AP": [1' + "0" * 400 + ", 1, 1]}}",
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path, text):
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"table\.json: not a table of l2g identity"):
        read_table(file)


# --- The rows of an ablation ---


def test_the_folder_of_an_ablation_stands_for_its_runs_in_the_order_of_training(tmp_path):
    for when, run in enumerate(("baseline/seed0", "baseline/seed1", "aligner/seed0")):
        weights = tmp_path / "table3" / run / "model_final.pth"
        weights.parent.mkdir(parents=True)
        weights.touch()
        os.utime(weights, (when, when))
    (tmp_path / "table3" / "aligner/seed1").mkdir()  # not finished
    single = tmp_path / "model_final.pth"
    single.touch()
    runs = named_runs([tmp_path / "table3", single])
    assert list(runs) == ["baseline/seed0", "baseline/seed1", "aligner/seed0", str(single)]


def test_two_runs_of_one_name_are_refused(tmp_path):
    """Two ablations with the same rows would silently become one."""
    for folder in ("a", "b"):
        weights = tmp_path / folder / "row" / "seed0" / "model_final.pth"
        weights.parent.mkdir(parents=True)
        weights.touch()
    with pytest.raises(UserError, match="b: a run named row/seed0 was given before"):
        named_runs([tmp_path / "a", tmp_path / "b"])


def _scores(ap, kept):
    return {"AP": (ap, ap - 1, ap + 1), "kept %": (kept, 0, 100)}


def test_rows_are_compared_seed_by_seed_with_the_first_and_with_the_paper():
    table = {"oracle linking": _scores(90, 90)}
    table |= {f"baseline/seed{seed}": _scores(20 + seed, 5) for seed in range(3)}
    table |= {f"aligner/seed{seed}": _scores(24 + seed, (4, 5, 9)[seed]) for seed in range(3)}
    lines = seeds_as_markdown(table, CONFIGS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[:3] == [
        ["AP", "baseline", "20.0, 21.0, 22.0", "21.00", "", "", ""],
        ["AP", "aligner", "24.0, 25.0, 26.0", "25.00", "+4.00 [+4.00, +4.00]", "higher", "+4.6 / +5.0"],
        ["kept %", "baseline", "5.0, 5.0, 5.0", "5.00", "", "", ""],
    ]
    assert cells[3][4:] == ["+1.00 [-5.57, +7.57]", "inconclusive", ""]


def test_a_run_with_a_memory_is_a_row_of_its_own_in_an_ablation():
    assert with_memory("a/seed0") == ["a+memory/seed0", "a+restart/seed0"]
    assert with_memory("output/demo") == ["output/demo+memory", "output/demo+restart"]
    table = {"a/seed0": _scores(20, 5), "a+memory/seed0": _scores(21, 5)}
    assert "-1.00" in seeds_as_markdown(table, CONFIGS, against="a+memory")


def test_any_row_can_be_the_one_compared_with():
    table = {"a/seed0": _scores(20, 5), "b/seed0": _scores(21, 5)}
    lines = seeds_as_markdown(table, CONFIGS, against="b").splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:4]] == ["b", "a"]
    assert "-1.00" in lines[3]
    with pytest.raises(UserError, match="--against c: the rows are a, b"):
        seeds_as_markdown(table, CONFIGS, against="c")
    with pytest.raises(UserError, match="--against c: there are no runs of an ablation"):
        seeds_as_markdown({"tracker": _scores(20, 5)}, CONFIGS, against="c")
    assert seeds_as_markdown({"tracker": _scores(20, 5)}, CONFIGS) == ""


def test_runs_without_seeds_have_no_table_of_rows():
    assert seeds_as_markdown({"output/hard": _scores(20, 5)}, CONFIGS) == ""
