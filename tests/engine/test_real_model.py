"""The real model and criterion in the trainer: overfitting, resume, accumulation, fp16 overflow, two processes."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from local2global.engine.loop import train
from local2global.engine.processes import launch_command
from local2global.engine.settings import train_settings
from local2global.engine.trainer import Trainer
from local2global.lazy import load_config
from local2global.weights.checkpoint import load_checkpoint

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import fake_run  # noqa: E402
import real_run  # noqa: E402

torch.set_num_threads(1)


def run(cfg, resume=False):
    train(cfg, resume=resume, progress=Console(file=io.StringIO()))
    return fake_run.curve(Path(cfg.train.output_dir))


def weights(folder, key="model"):
    return load_checkpoint(folder / "model_final.pth")[key]


def assert_equal_losses(first, second):
    assert len(first) == len(second) == 1
    for name, value in first[0].items():
        if "loss" in name:
            assert second[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def assert_equal_weights(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, **tolerance)


def test_one_clip_is_overfitted(tmp_path):
    """The loss of the final layer falls to a quarter within 40 steps."""
    cfg = real_run.config(tmp_path, max_iter=40)
    curve = run(cfg)
    terms = ("cls", "mask", "dice", "box", "giou")
    first, *_, last = (sum(entry[f"loss_{term}"] for term in terms) for entry in curve)
    assert last < first / 4


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path):
    """Losses, weights, averaged weights and optimizer state after 4 steps, resumed after 2."""
    settings = dict(instances=(3, 1), max_iter=4)
    for name in ("whole", "resumed"):
        cfg = real_run.config(tmp_path / name, **settings)
        cfg.train.checkpointer.update(period=2, max_to_keep=10)
        cfg.train.model_ema.update(enabled=True, decay=0.5)
        if name == "whole":
            whole = run(cfg)
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
            (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
            (tmp_path / "resumed" / "model_final.pth").unlink()
        else:
            assert run(cfg, resume=True) == whole
    first, second = (load_checkpoint(tmp_path / name / "model_final.pth") for name in ("whole", "resumed"))
    for key in ("model", "ema_state"):
        assert_equal_weights(first[key], second[key], atol=0, rtol=0)
    for state, other in zip(
        first["optimizer"]["state"].values(), second["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(other[k])) for k in state)


def generated(folder, batch, accumulate):
    """One step on generated videos, in `accumulate` batches."""
    cfg = real_run.with_sgd(real_run.config(folder, accumulate=accumulate))
    loader = load_config(str(real_run.CONFIG)).dataloader.train.loaders[1]
    loader.update(total_batch_size=batch, num_workers=0, seed=0, clip_length=3)
    cfg.dataloader.train = loader
    return cfg


def test_two_batches_of_two_clips_are_one_batch_of_four(tmp_path):
    """Equal losses and gradients: clips, draws and normaliser depend on the step, not on its division."""
    whole, parts = (
        run(generated(tmp_path / name, batch, 4 // batch)) for name, batch in (("whole", 4), ("parts", 2))
    )
    assert_equal_losses(whole, parts)
    assert_equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "parts"), rtol=1e-4, atol=1e-4)


def test_two_processes_are_one_process(tmp_path):
    """Losses (mean over processes) and gradients of two clips, one per process; one clip has no instances."""
    clips = ("[3,0]", "[3,1]")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "projects"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        launch_command([str(TESTS / "real_run.py"), str(tmp_path / "two"), *clips], 2),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for instances in clips:
        one, two = tmp_path / "one" / instances, tmp_path / "two" / instances
        assert_equal_losses(
            run(real_run.with_sgd(real_run.config(one, json.loads(instances)))), fake_run.curve(two)
        )
        assert_equal_weights(weights(one), weights(two), rtol=1e-4, atol=1e-4)


def test_an_fp16_overflow_skips_the_step_and_the_weight_average(tmp_path):
    """A loss scale of 2**100 overflows the gradients; the scale is halved and weights and average stay."""
    cfg = real_run.config(tmp_path, max_iter=2)
    cfg.train.amp.update(enabled=True, dtype="float16")
    cfg.train.model_ema.update(enabled=True, decay=0.5)
    train_settings(cfg)
    trainer = Trainer(cfg, torch.device("cpu"), Console(quiet=True))
    trainer.model.train()
    batches = iter(trainer.loader)
    with torch.no_grad():
        for value in trainer.average.average.values():
            value.add_(1)  # an update would move the average towards the weights
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    average = {name: value.clone() for name, value in trainer.average.average.items()}

    def step(scale):
        trainer.iteration += 1
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.step(trainer.model, batches)

    step(2.0**100)
    assert trainer.scaler.get_scale() == 2.0**99
    assert_equal_weights(before, trainer.model.state_dict(), atol=0, rtol=0)
    assert_equal_weights(average, trainer.average.average, atol=0, rtol=0)
    step(1.0)
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert any(not torch.equal(average[name], value) for name, value in trainer.average.average.items())
