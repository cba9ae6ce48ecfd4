"""Every config of the repository: it loads, its model can be built without data, and every part of it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from local2global.lazy import instantiate, load_config
from local2global.structures import Clip, ClipTargets

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.py"))
RECIPES = [str(p) for p in CONFIGS if p.parts[0] != "common"]
PAPER = "ytvis2021/l2g_r50.py"


def small_clip(classes: int, index: int, length: int = 2) -> Clip:
    """Two squares that move on noise, 64x96; the second is absent from the first frame."""
    generator = torch.Generator().manual_seed(index)
    frames = torch.randint(0, 255, (length, 3, 64, 96), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(2, length, 64, 96, dtype=torch.bool)
    boxes = torch.zeros(2, length, 4)
    for t in range(length):
        for i in range((t == 0 and 1) or 2):
            x, y = 8 + 40 * i + 4 * t, 12 + 8 * i
            masks[i, t, y : y + 24, x : x + 24] = True
            boxes[i, t] = torch.tensor([(x + 12) / 96, (y + 12) / 64, 24 / 96, 24 / 64])
    labels = torch.tensor([0, classes - 1])
    targets = ClipTargets(labels, torch.arange(2), masks, boxes, masks.flatten(2).any(-1))
    return Clip(frames, (64, 96), index, tuple(range(length)), targets, key=(0, 0, index))


@pytest.mark.parametrize("name", [str(p) for p in CONFIGS])
def test_it_loads(name):
    load_config(ROOT / "configs" / name)


@pytest.mark.parametrize("name", RECIPES)
def test_it_has_what_the_trainer_reads(name):
    cfg = load_config(ROOT / "configs" / name)
    assert {"model", "optimizer", "lr_multiplier", "dataloader", "train"} <= set(cfg)
    assert {"train", "test", "evaluator"} <= set(cfg.dataloader)


@pytest.mark.parametrize("name", RECIPES)
def test_its_schedule_starts_and_ends(name):
    """Trainers ask for the rate at where = 1.0 too."""
    schedule = instantiate(load_config(ROOT / "configs" / name).lr_multiplier)
    assert all(0 <= schedule(where) <= 1 for where in (0.0, 0.3, 0.999, 1.0))


@pytest.mark.parametrize("name", RECIPES)
def test_its_model_knows_its_classes(name):
    cfg = load_config(ROOT / "configs" / name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.segmenter.class_embed.out_features == len(model.classes) == len(cfg.model.classes)


def test_the_papers_model_has_the_papers_size():
    """Sec. 4.2: 55.2 M parameters, 3.2 M in the aligner with l_pos."""
    with torch.device("meta"):
        model = instantiate(load_config(ROOT / "configs" / PAPER).model)

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert (size(model), size(model.tracker), size(model.segmenter)) == (55_223_404, 3_185_920, 52_037_484)


@pytest.mark.parametrize("name", RECIPES)
def test_every_trainable_parameter_gets_a_gradient(name):
    """DistributedDataParallel's default depends on it."""
    torch.manual_seed(0)
    cfg = load_config(ROOT / "configs" / name)
    cfg.model.criterion.matcher.num_points = cfg.model.criterion.sampler.num_points = 64
    model = instantiate(cfg.model).train()
    clips = [small_clip(len(model.classes), i) for i in range(2)]
    sum(model(clips).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_ablation_is_one_override():
    cfg = load_config(ROOT / "configs" / PAPER, ["model.tracker.aligner.dim_feedforward=512"])
    with torch.device("meta"):
        aligner = instantiate(cfg.model).tracker.aligner
    assert sum(p.numel() for p in aligner.parameters()) == 2_372_352
