"""The contract of detrex's trainer, tested without detrex against a list of everything that it reads.

Its `instantiate` passes lists as ListConfigs.  Its loop calls the schedule at 1.0, sums all losses, and prints
scores with exactly two levels.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from local2global.config.targets import locate
from local2global.data.loader import Curriculum, TrainLoader
from local2global.lazy import load_config, own_instantiate
from local2global.structures import VideoResult

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
sys.path.insert(0, str(HERE))

from detrex_contract import ARGUMENTS, ATTRIBUTES, KEYS  # noqa: E402

WHOLE = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.py")
    if path.relative_to(CONFIGS).parts[0] not in ("common", "detrex")
)
DEMO = "demo/l2g_tiny.py"


def as_detectron2_builds(cfg):
    """Instantiate like detectron2: a list of the config is passed as a ListConfig of the built objects."""
    if isinstance(cfg, ListConfig):
        return ListConfig([as_detectron2_builds(each) for each in cfg], flags={"allow_objects": True})
    if not (isinstance(cfg, DictConfig) and "_target_" in cfg):
        return cfg
    arguments = {name: as_detectron2_builds(value) for name, value in cfg.items()}
    target = arguments.pop("_target_")
    return (locate(target) if isinstance(target, str) else target)(**arguments)


@pytest.fixture
def demo():
    cfg = load_config(
        CONFIGS / DEMO, ["dataloader.train.starts=[0,1]", "dataloader.test.dataset.num_videos=1"]
    )
    for loader in cfg.dataloader.train.loaders:
        loader.num_workers, loader.dataset.num_videos = 0, 4
    return cfg


@pytest.mark.parametrize("name", WHOLE)
def test_a_config_has_every_key_that_the_trainer_reads(name):
    cfg = load_config(CONFIGS / name, ["train.model_ema.enabled=True"])
    absent = object()
    missing = [key for key in KEYS if OmegaConf.select(cfg, key, default=absent) is absent]
    # The trainer sets this key itself.
    assert [key for key in missing if key != "optimizer.params.model"] == []
    assert "model" in cfg.optimizer.params
    for key, names in ARGUMENTS.items():
        assert set(OmegaConf.select(cfg, key)) <= names
    assert cfg.train.model_ema.device == cfg.train.device


@pytest.mark.parametrize("name", WHOLE)
def test_a_loaded_config_holds_only_config_nodes(name):
    """An imported class list or preset is not a key of the config; `data` holds paths that users set."""
    cfg = load_config(CONFIGS / name)
    assert all(isinstance(cfg[key], (DictConfig, ListConfig)) for key in cfg)
    assert set(cfg) <= {"model", "optimizer", "lr_multiplier", "dataloader", "train", "paper", "data"}


@pytest.mark.parametrize("name", WHOLE)
def test_the_schedule_is_defined_at_the_end(name):
    schedule = as_detectron2_builds(load_config(CONFIGS / name).lr_multiplier)
    assert all(0 < schedule(where) <= 1 for where in (0.0, 0.5, 1.0))


def test_parts_have_the_attributes_that_the_trainer_calls(demo):
    for key, names in ATTRIBUTES.items():
        part = as_detectron2_builds(OmegaConf.select(demo, key))
        assert [name for name in names if not hasattr(part, name)] == []


def test_lists_may_arrive_as_list_configs(demo):
    """Two steps of the demo built like detectron2; the saved state holds no config object."""
    model = as_detectron2_builds(demo.model).train()
    demo.optimizer.params.model = model
    optimizer = as_detectron2_builds(demo.optimizer)
    batches = iter(as_detectron2_builds(demo.dataloader.train))
    for _ in range(2):
        losses = model(next(batches))
        assert all(value.ndim == 0 and value.requires_grad for value in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), **demo.train.clip_grad.params)
        optimizer.step()
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    torch.load(saved, weights_only=True)


def test_scores_have_two_levels(demo, tmp_path):
    demo.train.output_dir = str(tmp_path)
    evaluator = as_detectron2_builds(demo.dataloader.evaluator)
    evaluator.reset()
    [[clip]] = as_detectron2_builds(demo.dataloader.test)
    none = torch.zeros(0, dtype=torch.long)
    nothing = VideoResult(
        clip.video_id, clip.size, len(clip), none, none, torch.zeros(0), lambda slot: iter(())
    )
    evaluator.process([clip], [nothing])
    scores = evaluator.evaluate()
    assert scores
    for task, values in scores.items():
        assert isinstance(task, str)
        assert all(isinstance(value, float) for value in values.values())


class Events:
    """A fake of detectron2's event storage, of a trainer that resumed at iteration 3."""

    iter = 3


def keys_of(loader, count):
    batches = iter(loader)
    return [next(batches)[0].key[1] for _ in range(count)]


def test_a_resumed_trainer_of_detectron2_gets_the_batches_of_its_iteration(demo, monkeypatch):
    """It does not call `seek`; the iteration is read from its event storage."""
    demo.dataloader.train.starts = [0, 4]
    curriculum, plain = (
        as_detectron2_builds(demo.dataloader.train),
        own_instantiate(demo.dataloader.train.loaders[0]),
    )
    assert (type(curriculum), type(plain)) == (Curriculum, TrainLoader)
    assert keys_of(curriculum, 2) == keys_of(plain, 2) == [0, 1]
    events = type(sys)("detectron2.utils.events")
    events._CURRENT_STORAGE_STACK = [Events()]
    monkeypatch.setitem(sys.modules, "detectron2.utils.events", events)
    assert keys_of(as_detectron2_builds(demo.dataloader.train), 3) == [3, 4, 5]
    assert keys_of(own_instantiate(demo.dataloader.train.loaders[0]), 2) == [3, 4]
    plain.seek(1)
    assert keys_of(plain, 2) == [1, 2], "seek takes precedence"
