"""Runs that were saved before modules moved still load."""

from __future__ import annotations

from pathlib import Path

import pytest

from local2global.config.saved import load_resolved
from local2global.config.targets import MOVED, current_name, locate
from local2global.lazy import instantiate

HERE = Path(__file__).parent
TARGETS = (HERE / "targets_of_version_0_1.txt").read_text().split()


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_that_version_0_1_saved_is_found(name):
    assert callable(locate(name))


def test_a_moved_module_is_needed():
    """No entry of the table is itself the name of a module of today, and each leads to one."""
    for old, new in MOVED.items():
        assert current_name(f"local2global.{new}.Name") == f"local2global.{new}.Name", (old, new)


def test_a_run_of_version_0_1_is_built_from_its_config_yaml():
    config = load_resolved(HERE / "run_of_version_0_1.yaml")
    assert type(instantiate(config.model)).__name__ == "Local2Global"
    assert next(iter(instantiate(config.dataloader.train)))[0].targets is not None
    assert instantiate(config.dataloader.evaluator) is not None
