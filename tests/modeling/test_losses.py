"""The losses of Eq. (4) computed by hand, and the points at which masks are compared."""

import math

import pytest
import torch

from local2global.modeling.losses import (
    PointSampler,
    dice_loss,
    giou_loss,
    l1_box_loss,
    sample_points,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from local2global.randomness import keyed_generator


def test_focal_loss_by_hand():
    """At p = 1/2: .25 * .25 * log 2 (positive), .75 * .25 * log 2 (negative); at p = 3/4: .25 / 16 * log 4/3."""
    logits, targets = torch.tensor([0.0, 0.0, math.log(3)]), torch.tensor([1.0, 0.0, 1.0])
    expected = [0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2), 0.25 / 16 * math.log(4 / 3)]
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), torch.tensor(expected))


def test_focal_loss_and_gradient_are_finite_for_large_logits():
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(loss, torch.tensor([150.0, 50.0]))
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_mask_losses_by_hand():
    """Logits 0 and log 3 (p = 1/2 and 3/4) at one point inside the mask and one outside."""
    logits, targets = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    cross_entropy = torch.tensor([(math.log(2) + math.log(4)) / 2])
    torch.testing.assert_close(sigmoid_ce_loss(logits, targets), cross_entropy)
    torch.testing.assert_close(dice_loss(logits, targets), torch.tensor([1 - (2 * 0.5 + 1) / (1.25 + 1 + 1)]))


def test_box_losses_by_hand():
    """The target is the box shifted by its own width: no overlap, and a hull twice as large as the box."""
    box, target = torch.tensor([0.25, 0.5, 0.5, 0.2]), torch.tensor([0.75, 0.5, 0.5, 0.2])
    torch.testing.assert_close(l1_box_loss(box, target), torch.tensor(0.5))
    torch.testing.assert_close(giou_loss(box, target), torch.tensor(1.0), atol=2e-5, rtol=0)
    torch.testing.assert_close(giou_loss(box, box), torch.tensor(0.0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, sigmoid_ce_loss, dice_loss, l1_box_loss, giou_loss])
def test_losses_of_bfloat16_inputs_are_float32(loss):
    assert loss(torch.rand(3, 4).bfloat16(), torch.rand(3, 4)).dtype == torch.float32


def test_points_refer_to_the_unpadded_frame():
    """A frame of 4 x 2 pixels in a map of 8 x 4; (x, y) = (3.5 / 4, 1.5 / 2) is column 3, row 1."""
    maps = torch.arange(32.0).view(1, 1, 4, 8)
    point = torch.tensor([[[3.5 / 4, 1.5 / 2]]])
    assert sample_points(maps, point, torch.tensor([4.0, 2.0])).item() == pytest.approx(11)
    assert sample_points(maps, point).item() == pytest.approx(2.5 * 8 + 6.5)
    extents = torch.tensor([[4.0, 2.0], [8.0, 4.0]])
    batch = sample_points(maps.expand(2, 1, 4, 8), point.expand(2, 1, 2), extents)
    assert batch.flatten().tolist() == pytest.approx([11, 26.5])


def test_pixels_outside_the_map_are_zero():
    assert sample_points(torch.ones(1, 1, 4, 8), torch.tensor([[[0.0, 0.0]]])).item() == pytest.approx(0.25)


def test_the_most_uncertain_candidates_are_chosen_and_the_uniform_points_appended():
    """P = 4: of 12 candidates the 3 with logits closest to zero, and 1 uniform point."""
    sampler = PointSampler(4)
    points = sampler.candidates(2, keyed_generator(0, "test"))
    assert points.shape == (2, 13, 2)
    logits = torch.tensor([9.0, -0.1, 8, 7, 0.3, -6, 5, -0.2, 4, 5, 6, 7, 0.0])
    before = logits.clone()
    assert set(sampler.choose(logits)[:3].tolist()) == {1, 4, 7}
    assert sampler.choose(logits)[3].item() == 12
    assert torch.equal(logits, before)


@pytest.mark.parametrize("number", [1, 7, 64, 12544])
def test_the_number_of_chosen_points(number):
    sampler = PointSampler(number)
    points = sampler.candidates(1, keyed_generator(0, "test"))
    chosen = sampler.choose(torch.randn(1, points.shape[1]))
    assert chosen.shape == (1, number)
    assert chosen.unique().numel() == number
    assert chosen.max() < points.shape[1]


def test_without_instances_no_points_are_chosen():
    sampler = PointSampler(8)
    points = sampler.candidates(0, keyed_generator(0, "test"))
    assert sampler.choose(torch.zeros(points.shape[:2])).shape == (0, 8)
