"""Device placement and device synchronisations, tested without a GPU.

Meta tensors stand for GPU tensors: they have their own device and no values, so every read of a value is detected.
Copies to the host return zeros and are recorded.
"""

import contextlib
import dataclasses

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from local2global.engine.settings import train_settings
from local2global.engine.trainer import Trainer
from local2global.lazy import instantiate, load_config
from local2global.modeling import criterion
from local2global.modeling.backbone import ResNet
from local2global.randomness import keyed_generator
from waits import waits

CHANNELS = [16, 16, 32, 32]


class Watch(TorchDispatchMode):
    """Records shapes copied to the host in `asked` and to the device in `sent`; fails on tensors of two devices."""

    def __init__(self):
        super().__init__()
        self.asked, self.sent = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        given = [one for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)]
        if name == "rand" and "generator" in kwargs:  # meta has no generator: a CPU generator stands for it
            return torch.empty(args[0], device="meta")
        if not any(one.is_meta for one in given):
            out = function(*args, **kwargs)
            if name == "_to_copy" and out.is_meta:
                self.sent.append(tuple(out.shape))
            return out
        if waits(name, args):
            raise AssertionError(f"{name} waits for the device")
        if name == "_to_copy" and str(kwargs.get("device")) == "cpu":
            self.asked.append(tuple(args[0].shape))
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        assert all(one.is_meta or one.ndim == 0 for one in given), f"{name} is given tensors of two devices"
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def _meta_is_a_gpu(monkeypatch):
    # meta has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)
    monkeypatch.setattr(criterion, "keyed_generator", lambda *key, device=None: keyed_generator(*key))


@pytest.fixture
def model(tiny):
    backbone = ResNet([1, 1, 1, 1], CHANNELS, 8, "basic")
    return tiny(backbone=backbone, channels={f"res{i + 2}": c for i, c in enumerate(CHANNELS)}).to("meta")


@torch.no_grad()
def test_a_stream_step_copies_nothing_to_the_host(model, make_clip):
    """Only frames and constants of at most 8 numbers are copied to the device."""
    frames = make_clip([[1, 1, 1]], size=(60, 90)).frames
    list(model.eval().stream(frames[:1]))  # constants that are cached per size
    with Watch() as watch:
        assert all(found.masks.is_meta for found in model.stream(frames))
    assert not watch.asked
    assert watch.sent.count((3, 60, 90)) == 3
    assert all(torch.Size(shape).numel() <= 8 for shape in watch.sent if shape != (3, 60, 90))


@pytest.mark.parametrize("name", ["demo/l2g_hard.py", "ytvis2021/l2g_r50.py"])
def test_a_model_of_a_config_is_on_one_device(root, name):
    model = instantiate(load_config(str(root / "configs" / name)).model).to("meta").eval()
    with torch.no_grad(), Watch() as watch:
        list(model.stream([torch.zeros(3, 128, 160, dtype=torch.uint8)] * 2))
    assert not watch.asked


def test_a_memory_of_objects_copies_only_affinities_and_scores_to_the_host(root):
    """12 slots: neither masks, nor queries, nor colours."""
    model = instantiate(load_config(str(root / "configs/demo/l2g_tiny.py")).model).to("meta").eval()
    with torch.no_grad(), Watch() as watch:
        list(model.stream([torch.zeros(3, 128, 160, dtype=torch.uint8)] * 2))
    assert watch.asked == [*[(1, 12, 12)] * 3, *[(1, 12)] * 3] * 2


def test_a_training_step_synchronises_twice(root, make_clip, tmp_path):
    """For the matching costs, and for whether losses and gradients are finite."""
    config = load_config(str(root / "configs/demo/l2g_tiny.py"), [f"train.output_dir={tmp_path}"])
    train_settings(config)
    trainer = Trainer(config, torch.device("meta"), Console(quiet=True))
    trainer.model.train()
    clips = [make_clip(key=(0, 0, i), seed=i, size=(96, 128)) for i in range(2)]
    clips = [
        dataclasses.replace(one, targets=dataclasses.replace(one.targets, labels=one.targets.labels % 3))
        for one in clips
    ]
    with Watch() as watch:
        trainer.step(trainer.model, iter([clips]))
    assert len(watch.asked) == 2
    costs, numbers = watch.asked
    assert len(costs) == 3
    assert numbers == (2,)
    assert all(
        parameter.grad is not None for parameter in trainer.model.parameters() if parameter.requires_grad
    )
