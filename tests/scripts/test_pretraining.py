"""Section 4.2's pre-training on tiny pictures: the frozen stays, the rest learns, video leaves the queries behind."""

from __future__ import annotations

import sys

import pretraining
import pytest
import torch
from pretraining import ToldOfAnother, frozen, moved, shuffled
from rich.console import Console

from local2global.engine.loop import load_model, train
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.weights.checkpoint import load_checkpoint, load_weights
from miniatures import write_images

CONFIGS = "configs/demo/coco_segmenter.py", "configs/demo/coco_pretrain.py"
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 8, "name": "truck"}]
#: Names of what pre-training trains.
PARTS = (
    "tracker.aligner.",
    "tracker.local_positions.",
    "tracker.first_frame.",
    "segmenter.decoder.ref_point_head.",
)


def test_moved_names_what_is_not_the_same_bit_for_bit():
    before = {"a": torch.tensor([0.0]), "b": torch.tensor([1.0]), "c": torch.tensor(1), "d": torch.zeros(2)}
    after = {"a": torch.tensor([-0.0]), "b": torch.tensor([1.0]), "c": torch.tensor(1.0), "e": torch.zeros(2)}
    assert moved(before, before) == []
    assert moved(before, after) == ["a", "c", "d", "e"]
    assert frozen(before, ["^a", "c$"]).keys() == {"b", "d"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """The folders of a segmenter trained for one step and of its pre-training for two, and the latter's config."""
    root, configs = tmp_path_factory.mktemp("runs"), [request.config.rootpath / name for name in CONFIGS]
    data = root / "coco_mini"
    for split in ("train", "val"):
        write_images(data / f"{split}2017", data / f"instances_{split}.json", CATEGORIES, [3, 8])
    points = [f"model.criterion.{part}.num_points=64" for part in ("matcher", "sampler")]
    common = [f"dataloader.test.dataset.root={data}", "train.device=cpu", "train.eval_period=0", *points]
    before = [f"train.output_dir={root / 'before'}", "train.max_iter=1"]
    after = [f"train.output_dir={root / 'after'}", "train.max_iter=2", "train.model_ema.enabled=true"]
    after += [f"train.init_checkpoint={root / 'before' / 'model_final.pth'}", "optimizer.weight_decay=0.5"]
    for config, overrides in zip(configs, (before, after), strict=True):
        cfg = load_config(config, [*common, *overrides])
        train(cfg, progress=Console(quiet=True))
    cfg.train.init_checkpoint = str(root / "after" / "model_final.pth")
    return root / "before", root / "after", cfg


def test_what_is_frozen_is_bit_equal_after_pre_training_and_the_rest_is_not(runs):
    """Weight decay, the clipping of gradients and the moving average leave it alone too."""
    before, after, cfg = runs
    start = load_checkpoint(before / "model_final.pth")["model"]
    end = load_checkpoint(after / "model_final.pth")
    for state in (end["model"], end["ema_state"]):
        kept = frozen(state, cfg.model.trainable)
        assert moved(frozen(start, cfg.model.trainable), kept) == []
        assert kept.keys() == {name for name in state if not name.startswith(PARTS)}
    trained = {name for name in start if name.startswith(PARTS)}
    assert trained
    assert set(moved(start, {**start, **{name: end["model"][name] for name in trained}})) == trained


def test_nothing_is_differentiated_below_the_local_queries(runs):
    """Backbone and encoder are run forward only."""
    model = load_model(runs[-1]).train()
    features = model.encode([torch.zeros(3, 96, 128, dtype=torch.uint8)])
    assert not features.memory.requires_grad
    assert not features.mask_features.requires_grad
    local = model.segmenter.propose(features)
    assert not local.predictions.logits.requires_grad
    assert model.tracker(None, local, model.segmenter.decoder.embed_boxes)[0].requires_grad


def test_an_image_told_of_itself_is_the_models_own_result(runs):
    model = load_model(runs[-1]).eval()
    frames = [torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    told = ToldOfAnother(model, {})
    (own,) = model.stream(frames[:1])
    torch.testing.assert_close(told.step(frames[0], frames[0]).masks, own.masks)
    assert (told.step(frames[0], frames[1]).masks - own.masks).abs().max() > 0.01


def test_every_image_is_told_of_the_next(runs):
    cfg = runs[-1]
    clips = [clip for batch in instantiate(cfg.dataloader.test) for clip in batch]
    others = shuffled(load_model(cfg), cfg).others
    assert len(clips) == len(others) == 6
    for i, clip in enumerate(clips):
        assert torch.equal(others[clip.video_id], clips[(i + 1) % 6].frames[0])


def test_the_comparison_is_printed_and_two_steps_do_not_pass_it(runs, request, monkeypatch, capsys):
    before, after, cfg = runs
    config = str(request.config.rootpath / CONFIGS[1])
    root = f"dataloader.test.dataset.root={cfg.dataloader.test.dataset.root}"
    arguments = ["pretraining.py", config, root, "--before", str(before), "--after", str(after)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as done:
        pretraining.main()
    lines = capsys.readouterr().out.splitlines()
    assert done.value.code == 1
    assert [line.split(" AP ")[0].strip() for line in lines[:3]] == [
        "the segmenter by itself",
        "learned queries + aligner",
        "told of another image",
    ]
    assert lines[3].endswith("frozen tensors, 0 changed")


def test_video_training_leaves_the_learned_queries_behind_and_says_so(runs, request, tmp_path):
    """A smaller model's hand-over: the class head is of other classes, so it starts new."""
    path = runs[1] / "model_final.pth"
    video = load_config(request.config.rootpath / "configs/demo/real_clips.py").model
    model = instantiate(video)
    with pytest.raises(UserError, match=r"only some of segmenter\.class_embed"):
        load_weights(model, load_checkpoint(path), strict=False)
    report = load_weights(model, load_checkpoint(path), strict=False, partial=True)
    assert (
        "1 dropped: learned queries of pre-training, which a video's local queries replace"
        in report.summary()
    )
    assert (report.missing, report.unexpected) == ((), ())
