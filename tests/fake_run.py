"""A minimal model, loader and evaluator for tests of the engine: linear regression on keyed random numbers.

As a script, which torchrun can start: train several configs in sequence, their overrides separated by --then.
"""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from local2global.engine.loop import train
from local2global.engine.processes import rank, world_size
from local2global.errors import UserError
from local2global.randomness import keyed_generator

WIDTH = 3


@dataclass(frozen=True)
class FakeClip:
    """One sample of two frames."""

    x: torch.Tensor
    y: torch.Tensor
    video_id: int
    key: tuple[int, ...]

    def __len__(self):
        return 2


def sample(seed, iteration, index):
    """The clip of global index `index`, the same on every process."""
    key = (seed, iteration, index)
    x = torch.randn(WIDTH, generator=keyed_generator(*key))
    return FakeClip(x, x.sum()[None], video_id=100 + index, key=key)


@dataclass
class Loader:
    """An endless loader with `seek`; yields this process's part of `batch` clips."""

    batch: int
    seed: int
    start: int = field(default=0)

    def seek(self, iteration, accumulate=1):
        self.start = iteration * accumulate

    def __iter__(self):
        count = self.batch // world_size()
        for iteration in itertools.count(self.start):
            yield [sample(self.seed, iteration, rank() * count + index) for index in range(count)]


class Finite(Loader):
    """A loader that ends after two batches."""

    def __iter__(self):
        yield from itertools.islice(super().__iter__(), 2)


class Model(nn.Module):
    """Two losses, and optional noise from the global generator, whose state a resume must restore.

    `pause` are the seconds of a step.
    """

    def __init__(self, noise=0.0, events=None, pause=0.0):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)
        self.register_buffer("scale", torch.ones(1))
        self.noise, self.events, self.pause = noise, dict(events or {}), pause

    def forward(self, clips):
        if not self.training:
            return [float(self.layer(clip.x)) for clip in clips]
        event = self.events.get(str(clips[0].key[1]))
        if event in ("SIGKILL", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, event))
        if str(event).startswith("/"):
            # At once: TensorBoard's thread may create a file during `rmtree`.
            shutil.rmtree(shutil.move(event, f"{event}-deleted"))
        time.sleep(self.pause)
        error = torch.stack([self.layer(clip.x) * self.scale - clip.y for clip in clips]).float()
        losses = {"loss_square": error.square().mean(), "loss_size": 0.01 * self.layer.weight.abs().sum()}
        if self.noise:
            losses["loss_noise"] = (self.noise * torch.randn(1) * self.layer.bias).sum()
        if event == "refuse":
            raise UserError("the predictions have overflowed")
        if event == "nan":
            losses["loss_size"] = losses["loss_size"] * float("nan")
        return losses


class Renamed(Model):
    """A model whose state dict has other names than its parameters."""

    def __init__(self, **options):
        super().__init__(**options)
        self._register_state_dict_hook(lambda _, state, *__: state.update(w=state.pop("layer.weight")))
        self._register_load_state_dict_pre_hook(
            lambda state, *_: state.update({"layer.weight": state.pop("w")} if "w" in state else {})
        )


class Evaluator:
    """Mean absolute error, and a score that is undefined."""

    def reset(self):
        self.errors = []

    def process(self, inputs, outputs):
        assert not torch.is_grad_enabled()
        torch.rand(1), self.errors.extend(abs(o - float(c.y)) for c, o in zip(inputs, outputs, strict=True))

    def evaluate(self):
        return (
            {"line": {"error": sum(self.errors) / len(self.errors), "undefined": -1.0}} if rank() == 0 else {}
        )


class InterruptedEvaluator(Evaluator):
    """A signal arrives at the first video of the evaluation of one iteration, unless the run was resumed."""

    def __init__(self, marker):
        self.marker = Path(marker)

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGINT)
        elif self.marker.read_text() == "":
            raise AssertionError("the evaluation went on")

    def evaluate(self):
        assert self.marker.read_text() == "resumed"
        return super().evaluate()


class FailingEvaluator(Evaluator):
    """An evaluator that fails."""

    def evaluate(self):
        raise ZeroDivisionError


class WritingEvaluator(Evaluator):
    """An evaluator that writes its scores to `output_dir`."""

    def __init__(self, output_dir):
        self.output_dir = Path(output_dir)

    def evaluate(self):
        scores = super().evaluate()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        (self.output_dir / "results.json").write_text(json.dumps(scores["line"]))
        return scores


class Dataset:
    """Test videos; counts how often it was built."""

    built = 0

    def __init__(self, videos):
        type(self).built += 1
        self.videos = [[sample(9, 0, index)] for index in range(videos)]


class LoaderOf:
    """A loader of a dataset's videos."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset.videos)


class EvaluatorOf(Evaluator):
    """An evaluator with a truth."""

    def __init__(self, truth):
        assert len(truth.videos) == 2


def test_videos():
    return [[sample(9, 0, index)] for index in range(2)]


def parameters(model):
    return list(model.parameters())


def sgd(params, lr, betas):
    return torch.optim.SGD(params, lr, momentum=betas[0])


def config(folder, *overrides):
    """The config of a run, with dotlist overrides."""
    train_keys = {"output_dir": str(folder), "device": "cpu", "max_iter": 10, "seed": 3, "log_period": 1}
    train_keys |= {"checkpointer": {"period": 4, "max_to_keep": 100}, "eval_period": 0}
    schedule = {"values": [1.0, 0.1], "milestones": [6], "num_updates": 10}
    cfg = OmegaConf.create(
        {
            "model": {"_target_": "fake_run.Model", "noise": 0.0, "events": {}},
            "optimizer": {
                "_target_": "torch.optim.AdamW",
                "params": {"_target_": "fake_run.parameters"},
                "lr": 0.05,
                "betas": [0.9, 0.99],
            },
            "lr_multiplier": {
                "_target_": f"{MultiStepParamScheduler.__module__}.MultiStepParamScheduler",
                **schedule,
            },
            "dataloader": {
                "train": {"_target_": "fake_run.Loader", "batch": 4, "seed": "${train.seed}"},
                "test": {"_target_": "fake_run.test_videos"},
                "evaluator": {"_target_": "fake_run.Evaluator"},
            },
            "train": train_keys,
        },
        flags={"allow_objects": True},
    )
    merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(merged, DictConfig)
    merged._set_flag("allow_objects", True)
    return merged


def entries(folder):
    """The entries of metrics.jsonl, without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clocks = ("time", "data_time", "eta_seconds", "speed/frames_per_second", "ema_speed/frames_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def curve(folder):
    """The logged losses by iteration, without times."""
    return [entry for entry in entries(folder) if "total_loss" in entry]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in " ".join(sys.argv[1:]).split(" --then "):
        try:
            train(config(*arguments.split()))
        except (UserError, KeyboardInterrupt) as error:
            sys.exit(f"fake_run: {error!r}")
