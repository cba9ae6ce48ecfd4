"""`l2g train --plan`: memory fitted to small steps, batches that fit, balance of several GPUs, missing data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from local2global.app import cli
from local2global.app.plan import (
    Batches,
    StepCost,
    count_step,
    draw_sizes,
    parts_of,
    plan,
    read_sources,
    scaling,
    suggest,
)
from local2global.app.plan import _clip as clip_of
from local2global.engine.memory import peak_memory
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import real_run  # noqa: E402

GIB = 2**30


@pytest.fixture
def small(tmp_path):
    """The config of a small model without data, with one clip of two frames."""
    cfg = load_config(real_run.CONFIG)
    cfg.model = real_run.config(tmp_path).model
    cfg.train.output_dir = str(tmp_path / "run")
    return cfg


def test_the_peak_of_a_larger_step_is_predicted_within_fifteen_percent(small):
    """Counted on frames of 192x192 and 192x384; predicted for three frames of 256x448."""
    model = instantiate(small.model).train()
    cost = count_step(model, None)
    clip = clip_of(model, (256, 448), 3)

    def step():
        torch.stack(list(model([clip]).values())).sum().backward()

    measured = peak_memory(step, torch.device("cpu"))
    assert cost.activations(3, 256 * 448) == pytest.approx(measured, rel=0.15)


def test_peak_memory_includes_freed_tensors():
    results = []

    def arm():
        first = torch.ones(1 << 20)
        second = first + 1
        del first  # 4 MiB, which the third tensor can use again
        results.append(second * 2)

    for _ in range(2):
        assert 8 << 20 <= peak_memory(arm, torch.device("cpu")) < (8 << 20) + 1000


def test_the_parts_of_the_papers_model_add_up():
    with torch.device("meta"):
        model = instantiate(load_config(ROOT / "configs/ytvis2021/l2g_r50.py").model)
    parts = parts_of(model)
    assert sum(part["parameters"] for part in parts.values()) == 55_223_404
    assert parts["aligner"] == {"parameters": 3_160_320, "trained": 3_160_320}
    assert parts["backbone"]["parameters"] - parts["backbone"]["trained"] == 64 * 3 * 7 * 7  # the stem


def batches(per_clip_gib: float, per_step: int = 4) -> Batches:
    """Clips of one frame that need a given memory; 1 GiB is fixed; checkpointing halves the memory of a clip."""
    costs = {
        checkpointing: StepCost(0.0, per_clip_gib * GIB / (1 + checkpointing), 0.0)
        for checkpointing in (False, True)
    }
    return Batches(per_step, 1, {"weights": GIB}, costs, torch.tensor([[32, 32]] * 8))


CURRENT = {"total_batch_size": 8, "accumulate": 1, "checkpointing": False}


@pytest.mark.parametrize(
    ("clip", "clips", "needs", "overrides"),
    [
        (3.0, 4, 13.0, {}),
        (5.0, 2, 11.0, {"total_batch_size": 4, "accumulate": 2}),
        (20.0, 1, 11.0, {"total_batch_size": 2, "accumulate": 4, "checkpointing": True}),
        (60.0, 0, 31.0, {}),
    ],
)
def test_accumulation_is_suggested_before_checkpointing(clip, clips, needs, overrides):
    """A GPU of 16 GiB has (16 - 1) * .95 = 14.25 GiB for two GPUs' batches of 8 clips."""
    found = suggest(batches(clip), 16, gpus=2, current=CURRENT)
    assert (found["clips_per_gpu"], found["bytes"] / GIB, found["overrides"]) == (clips, needs, overrides)


def test_an_iteration_lasts_as_long_as_its_slowest_gpu():
    """Two GPUs with frames of 1 and 3 pixels, then of 2 and 2; a frame costs 1 + pixels.

    The slowest GPU needs 4 + 3, the mean is 3 + 3.  Of 1 GB of gradients each GPU sends 2 * 1/2 GB, 10 ms at
    100 GB/s, which the backward pass of a step of 1 s hides.
    """
    sizes = torch.tensor([[1, 1], [1, 3], [2, 1], [1, 2]])
    found = scaling(2, 2, sizes, StepCost(0.0, 1.0, 1.0), 10**9, its=1.0)
    assert found["balance"] == found["efficiency"] == pytest.approx(6 / 7)
    assert (found["bytes_sent"], found["all_reduce_seconds"]) == (10**9, 0.01)


def test_between_nodes_the_all_reduce_is_slower_than_the_backward_pass():
    """32 GPUs send 2 * 31/32 of 8 GB at 10 GB/s: 1.55 s, of which half a step of 1 s is hidden: 1 / 2.05."""
    found = scaling(32, 32, torch.ones(64, 2).long(), StepCost(0.0, 1.0, 1.0), 8 * 10**9, its=1.0)
    assert found["efficiency"] == pytest.approx(1 / 2.05)


def test_data_sets_that_are_not_on_disk_have_their_published_size():
    cfg = load_config(ROOT / "configs/ovis/l2g_r50.py")
    images, videos = read_sources(cfg, "dataloader.train")
    assert (images.found, images.videos, images.share) == (False, None, 0.8)
    assert (videos.found, videos.videos, videos.share) == (False, 607, 0.2)
    # Portrait and landscape crops; shorter edges of 288 to 512, longer ones up to 768, padded to 32.
    sizes = draw_sizes([videos], 4, 32, 200)
    assert sizes.amin() >= 288
    assert sizes.amax() == 768
    assert (sizes % 32 == 0).all()


def test_a_plan_counts_epochs_and_hours_and_changes_nothing(small, tmp_path):
    """2,800 iterations of two clips over 100,000 videos; 2,800 / 2 / 3,600 hours."""
    values = json.loads(json.dumps(plan(small, its=2.0)))
    (data,) = values["data"]
    assert (data["found"], data["videos"], data["clips"], data["epochs"]) == (True, 100_000, 5600, 0.056)
    assert values["images_per_iteration"] == 6
    assert values["hours"] == pytest.approx(2800 / 2 / 3600)
    memory = values["memory"]
    assert memory["optimizer"] > 2 * memory["gradients"] > 0
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert values["suggestions"][0]["overrides"] == {}
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_divided_is_refused(small):
    with pytest.raises(UserError, match=r"--gpus 3: .*total_batch_size=2 cannot be divided"):
        plan(small, gpus=3)


def test_the_command_prints_tables_and_writes_json(tmp_path, monkeypatch, capsys):
    """A step is taken to need 1 MB a frame and 100 bytes a pixel."""
    for name in ("KINETO_LOG_LEVEL", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setattr("local2global.app.plan.count_step", lambda model, dtype: StepCost(0.0, 1e6, 100.0))
    file = tmp_path / "plan.json"
    command = ["train", "demo/l2g_tiny.py", "--plan", "--its", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["l2g", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "2,800 iterations of 2 clips of 3 frames (6 images): 0.4 hours" in " ".join(printed.split())
    values = json.loads(file.read_text())
    assert values["largest_frame"] == [96, 160]
    assert values["memory"]["activations"] == 6 * (1e6 + 100 * 96 * 160)
