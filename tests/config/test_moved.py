"""Configs of runs saved before modules moved still load."""

from __future__ import annotations

from pathlib import Path

import pytest

from local2global.config.saved import load_resolved
from local2global.config.targets import MOVED, current_name, locate
from local2global.lazy import instantiate

HERE = Path(__file__).parent
TARGETS = (HERE / "targets_of_version_0_1.txt").read_text().split()


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_of_version_0_1_is_found(name):
    assert callable(locate(name))


def test_new_places_in_the_table_have_not_moved_again():
    for old, new in MOVED.items():
        assert current_name(f"local2global.{new}.Name") == f"local2global.{new}.Name", (old, new)


def test_single_names_move_independently_of_their_module(monkeypatch):
    monkeypatch.setitem(MOVED, "modeling.tracker.Old", "modeling.variants.New")
    assert current_name("local2global.modeling.tracker.Old") == "local2global.modeling.variants.New"
    assert current_name("local2global.modeling.tracker.Tracker") == "local2global.modeling.tracker.Tracker"
    assert current_name("elsewhere.modeling.tracker.Old") == "elsewhere.modeling.tracker.Old"


def test_a_run_of_version_0_1_is_built_from_its_config_yaml():
    config = load_resolved(HERE / "run_of_version_0_1.yaml")
    assert type(instantiate(config.model)).__name__ == "Local2Global"
    assert next(iter(instantiate(config.dataloader.train)))[0].targets is not None
    assert instantiate(config.dataloader.evaluator) is not None


def test_a_single_name_can_move_out_of_its_module():
    moved = "local2global.data.datasets.load_youtube_vis"
    assert current_name(moved) == "local2global.data.readers.youtube_vis.load_youtube_vis"
    assert callable(locate(moved))
    assert current_name("local2global.data.datasets.merge") == "local2global.data.datasets.merge"
