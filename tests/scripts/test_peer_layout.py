"""The benchmark's peer computes our results: streams, losses, gradients and boxes of masks."""

from __future__ import annotations

import pytest
import torch
from peer_layout import peer_of, planes_to_box

from local2global.boxes import mask_to_box


@pytest.fixture
def models(tiny):
    """A small model and its peer."""
    model = tiny()
    return model, peer_of(model)


@torch.no_grad()
def test_streams_are_equal(models, make_clip):
    frames = make_clip().frames
    for ours, theirs in zip(*(model.eval().stream(frames) for model in models), strict=True):
        for name in ("logits", "boxes", "masks"):
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs.queries.boxes, ours.queries.boxes)


def test_losses_and_gradients_are_equal(models, make_clip):
    clips = [make_clip(), make_clip(visible=((0, 1, 1), (0, 0, 0), (1, 1, 0)), key=(0, 0, 1), seed=1)]
    losses, gradients = zip(*(_step(model.train(), clips) for model in models), strict=True)
    assert {k for k, v in losses[0].items() if v} == {k for k, v in losses[1].items() if v}
    for name, value in losses[0].items():
        if value:
            assert losses[1][name] == pytest.approx(value, rel=2e-4), name
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-2, abs=1e-4)


def _step(model, clips):
    """Losses by name, and the gradient norm of every parameter."""
    losses = model(clips)
    sum(losses.values()).backward()
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {name: float(value.detach()) for name, value in losses.items()}, norms


def test_boxes_of_masks_are_equal():
    masks = torch.randn(2, 3, 5, 7) - 1.5
    masks[0, 0] = -1
    fallback, extent = torch.rand(2, 3, 4), torch.tensor([[7.0, 5.0], [5.0, 4.0]])
    torch.testing.assert_close(
        planes_to_box(masks, fallback, extent), mask_to_box(masks, fallback, extent[:, None])
    )
