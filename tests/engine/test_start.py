"""The block that a training prints first: initial weights, random parts and why they matter, time of the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from local2global.engine.start import random_parts
from local2global.weights.report import LoadReport

NOTHING = LoadReport(loaded=("segmenter.encoder.a",), missing=(), unexpected=(), mismatched=())


def branch(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


@pytest.fixture
def model():
    """A backbone, a frozen label embedding and an aligner."""
    segmenter = branch(backbone=branch(stem=nn.Linear(2, 2)), label_enc=nn.Embedding(3, 2))
    segmenter.label_enc.requires_grad_(False)
    return branch(segmenter=segmenter, tracker=branch(aligner=branch(norm=nn.LayerNorm(2))))


def test_complete_weights_leave_nothing_random(model):
    assert random_parts(model, NOTHING) == []


def test_a_random_tracker_names_the_pre_training(model):
    """Its frozen label embedding is not used and is not listed."""
    missing = ("tracker.aligner.norm.weight", "tracker.aligner.norm.bias", "segmenter.label_enc.weight")
    (line,) = random_parts(model, replace(NOTHING, missing=missing))
    assert line == "tracker.aligner: pre-train them with configs/coco/l2g_r50_60k.py, as the paper does"


def test_frozen_parameters_that_stay_random_are_named(model):
    model.segmenter.backbone.requires_grad_(False)
    everything, frozen = random_parts(model, None)
    assert everything.startswith("all parameters: set train.init_checkpoint")
    assert frozen == "segmenter.backbone: frozen parameters, which stay random"


def test_new_classes_are_counted_once(model):
    """Three tensors of the class head are matched in the same way."""
    heads = tuple((name, "15 of 25 rows copied by the COCO map, the rest new") for name in "abc")
    lines = random_parts(model, replace(NOTHING, reshaped=heads))
    assert lines == ["class heads: 15 of 25 rows copied by the COCO map, the rest new"]
