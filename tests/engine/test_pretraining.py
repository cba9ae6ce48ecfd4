"""COCO pre-training, section 4.2: only the aligner's parts train, and video training drops the learned queries."""

from __future__ import annotations

import re

import pytest
import torch
from rich.console import Console

from local2global.engine.loop import load_model, train
from local2global.lazy import instantiate, load_config
from local2global.weights.checkpoint import load_checkpoint, load_weights
from miniatures import write_images

CONFIGS = "configs/demo/coco_segmenter.py", "configs/demo/coco_pretrain.py"
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 8, "name": "truck"}]
#: Report of a class head; the two lists share no class.
RESHAPED = "0 of {} rows copied by class name, the rest new"
#: Prefixes of the parameters that pre-training updates.
TRAINED = (
    "tracker.aligner.",
    "tracker.local_positions.",
    "tracker.first_frame.",
    "segmenter.decoder.ref_point_head.",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """Train a segmenter for one step and its pre-training for two; return both folders and the second config."""
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


def test_frozen_tensors_are_bit_equal_after_pretraining_and_the_others_changed(runs):
    """Weight decay, gradient clipping and the moving average leave frozen tensors unchanged."""
    before, after, cfg = runs
    start = load_checkpoint(before / "model_final.pth")["model"]
    end = load_checkpoint(after / "model_final.pth")
    for state in (end["model"], end["ema_state"]):
        frozen = [name for name in state if not any(re.search(p, name) for p in cfg.model.trainable)]
        assert set(frozen) == {name for name in state if not name.startswith(TRAINED)}
        for name in frozen:
            assert torch.equal(start[name], state[name]), name
    trained = [name for name in start if name.startswith(TRAINED)]
    assert trained
    assert not any(torch.equal(start[name], end["model"][name]) for name in trained)


def test_backbone_and_encoder_have_no_backward_graph(runs):
    """Only the tracker's output requires a gradient."""
    model = load_model(runs[-1]).train()
    features = model.encode([torch.zeros(3, 96, 128, dtype=torch.uint8)])
    assert not features.memory.requires_grad
    assert not features.mask_features.requires_grad
    proposals = model.segmenter.propose(features)
    assert not proposals.predictions.logits.requires_grad
    assert model.tracker(None, proposals, model.segmenter.decoder.embed_boxes)[0].embed.requires_grad


def test_the_learned_queries_read_the_frame_through_the_aligner(runs):
    """With the local queries of another frame the masks differ; with its own they are the stream's."""
    model = load_model(runs[-1]).eval()
    frames = [torch.randint(256, (3, 96, 128), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    (expected,) = model.stream(frames[:1])
    with torch.no_grad():
        features = model.encode(frames[:1])
        masks = []
        for frame in frames:
            proposals = model.segmenter.propose(model.encode([frame]))
            queries, positions = model.tracker(None, proposals, model.segmenter.decoder.embed_boxes)
            masks.append(model.segmenter.decode(queries, positions, features, proposals.predictions).masks)
    torch.testing.assert_close(masks[0], expected.masks)
    assert (masks[1] - expected.masks).abs().max() > 0.01


def test_video_training_drops_the_learned_queries_and_logs_it(runs, request):
    """The rows of the class heads are matched by class name; rows of new classes are re-initialised."""
    path = runs[1] / "model_final.pth"
    video = load_config(request.config.rootpath / "configs/demo/real_clips.py").model
    model = instantiate(video)
    report = load_weights(model, load_checkpoint(path), strict=False)
    assert (
        "1 dropped: learned queries of pre-training, replaced by a video's local queries" in report.summary()
    )
    assert [text for _, text in report.reshaped] == [RESHAPED.format(len(model.classes))] * 3
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
