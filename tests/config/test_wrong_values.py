"""Wrong values at every key of a config: each is accepted, or refused in one line, before anything is written."""

import copy
import itertools
import math

import pytest
from omegaconf import DictConfig

import real_run
from local2global.config.targets import FLAGS
from local2global.data.augment import (
    ClipAugmentation,
    ColourJitter,
    DriftingCrop,
    RandomShortestEdge,
    Turn,
    ZoomCrop,
)
from local2global.data.scene_cuts import SceneCuts
from local2global.engine.loop import checked
from local2global.engine.settings import build
from local2global.errors import UserError
from local2global.lazy import LazyCall as L
from local2global.lazy import load_config, resolve

VALUES = [
    "abc",
    "${train.output_dir}",
    "${model.classes}",
    "${dataloader}",
    {"a": 1},
    [[]],
    [{"id": 1}],
    -1,
    0,
]
VALUES += [1e30, 2**70, math.nan, None, True, "???", {"_target_": "torch.nn.ReLU"}]
PARTS = [
    "model",
    "dataloader.train",
    "dataloader.test",
    "dataloader.evaluator",
    "optimizer",
    "lr_multiplier",
    "train",
]


@pytest.fixture(scope="module")
def config():
    """A small run with every augmentation, as plain values."""
    cfg = real_run.config("output/run")
    full = load_config(real_run.CONFIG)
    full.dataloader.test.dataset.update(num_videos=1, length=2)
    loader = full.dataloader.train.loaders[0]
    loader.update(clip_length=2, num_workers=0, window=2, tries=3, cuts=L(SceneCuts)(end=0.5, interrupt=0.5))
    loader.dataset.update(num_videos=2, length=3)
    crop = L(ZoomCrop)(
        probability=1.0,
        resize=L(RandomShortestEdge)(edges=[32], max_size=64),
        crop=L(DriftingCrop)(low=16, high=32),
    )
    jitter = L(ColourJitter)(brightness=0.2, contrast=0.2, saturation=0.2)
    turn = L(Turn)(degrees=15.0, centre=[0.4, 0.6])
    loader.augment = L(ClipAugmentation)(
        edges=[32], max_size=64, crop=crop, flip=0.5, jitter=jitter, turn=turn
    )
    del full.dataloader.train.loaders[1]
    full.dataloader.train.starts = [0]
    cfg.dataloader = full.dataloader
    return resolve(cfg)


def keys(value, path=()):
    """The paths of all values below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from keys(item, (*path, key))


@pytest.mark.parametrize("part", PARTS)
def test_every_key_accepts_or_refuses_a_wrong_value_in_one_line(config, part, tmp_path, monkeypatch):
    """One or two of the values at each key, in turn."""
    monkeypatch.chdir(tmp_path)
    top = tuple(part.split("."))
    values = itertools.cycle(VALUES)
    refused = []
    for path in keys(config):
        if path[: len(top)] != top or path[-1] == "_target_":
            continue
        for value in itertools.islice(values, 1 if part == "model" else 2):
            changed = copy.deepcopy(config)
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            try:
                cfg = checked(DictConfig(changed, flags=FLAGS))
                if part == "dataloader.train":
                    next(iter(build(cfg, part)))
                elif part not in ("train", "optimizer"):
                    build(cfg, part)
            except UserError as error:
                refused.append(str(error))
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, path))}={value!r}") from error
    assert len(refused) > 5
    assert not [message for message in refused if "unexpected " in message]
    assert not list(tmp_path.iterdir())
