"""Matching costs computed by hand, and the assignment."""

import math

import numpy as np
import pytest
import torch

from local2global.errors import UserError
from local2global.modeling.losses import dice_loss, sigmoid_ce_loss
from local2global.modeling.matcher import (
    Matcher,
    assign,
    class_cost,
    dice_cost,
    mask_cost,
    match_clip,
    match_frame,
)


def test_class_cost_by_hand():
    """At p = 1/2 the positive term is .25 * .25 * log 2, the negative one .75 * .25 * log 2."""
    expected = (0.25 - 0.75) * 0.25 * math.log(2)
    torch.testing.assert_close(class_cost(torch.zeros(1, 1)), torch.tensor([[expected]]), atol=1e-4, rtol=0)


def test_mask_costs_are_the_losses_of_all_pairs():
    logits = torch.tensor([[0.0, math.log(3)], [2.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    pairs = logits[:, None].expand(2, 3, 2), targets[None].expand(2, 3, 2)
    torch.testing.assert_close(mask_cost(logits, targets), sigmoid_ce_loss(*pairs))
    torch.testing.assert_close(dice_cost(logits, targets), dice_loss(*pairs))


def test_the_cost_is_the_weighted_sum_of_its_terms():
    """Each term alone, computed by hand, then all with the default weights."""
    logits, masks = torch.zeros(1, 2), torch.zeros(1, 4)
    box, tgt_box = torch.tensor([[0.25, 0.5, 0.5, 0.2]]), torch.tensor([[0.75, 0.5, 0.5, 0.2]])
    label, tgt_mask = torch.tensor([1]), torch.tensor([[1.0, 1, 0, 0]])
    zero = dict.fromkeys(["cost_class", "cost_mask", "cost_dice", "cost_box", "cost_giou"], 0.0)
    inputs = (logits, box, masks, label, tgt_box, tgt_mask)
    by_hand = {
        "cost_class": -0.5 * 0.25 * math.log(2),
        "cost_mask": math.log(2),
        "cost_dice": 1 - (2 + 1) / (2 + 2 + 1),
        "cost_box": 0.5,
        "cost_giou": 0.0,
    }
    for name, value in by_hand.items():
        assert Matcher(**(zero | {name: 1.0})).cost(*inputs).item() == pytest.approx(value, abs=1e-4)
    total = 4 * by_hand["cost_class"] + 5 * (math.log(2) + 0.4 + 0.5)
    assert Matcher().cost(*inputs).item() == pytest.approx(total, abs=1e-3)


def test_a_weight_of_none_is_the_loss_weight():
    loss_weights = {"cls": 20.0, "mask": 1.0, "dice": 2.0, "box": 3.0, "giou": 0.0}
    assert Matcher().weights(loss_weights) == loss_weights
    assert Matcher(cost_class=4.0, cost_mask=0.0).weights(loss_weights) == loss_weights | {
        "cls": 4.0,
        "mask": 0.0,
    }


def test_stuff_has_no_box_cost():
    logits, masks, labels = torch.zeros(1, 2, 3), torch.zeros(1, 2, 8), torch.tensor([[0, 2]])
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5]]])
    has_box = torch.tensor([[True, False]])
    costs = Matcher(num_points=8).cost(logits, boxes, masks, labels, boxes, masks, has_box)[0]
    assert costs[0, 1] == costs[1, 1]
    assert costs[0, 0] < costs[1, 0]


def test_costs_are_float32_under_autocast():
    inputs = (torch.randn(6, 3), torch.rand(6, 4), torch.randn(6, 99), torch.tensor([0, 2]), torch.rand(2, 4))
    tgt_masks = (torch.rand(2, 99) > 0.5).float()
    full = Matcher().cost(*inputs, tgt_masks)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = Matcher().cost(*inputs, tgt_masks)
    assert autocast.dtype == torch.float32
    assert torch.equal(autocast, full)


def test_costs_without_instances_are_empty():
    cost = Matcher().cost(
        *(torch.randn(6, 3), torch.rand(6, 4), torch.randn(6, 9)),
        *(torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0, 9)),
    )
    assert cost.shape == (6, 0)


def test_the_assignment_is_optimal_not_greedy():
    """Greedy matching takes (0, 0) for 1 and then pays 9; the optimum pays 2 + 2."""
    rows, columns = assign(np.array([[1.0, 2.0], [2.0, 9.0]]))
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 0}


def test_barred_queries_are_not_assigned():
    cost = np.array([[-100.0], [5.0], [1.0], [3.0]])
    rows, columns = assign(cost, np.array([True, False, True, False]))
    assert (rows.tolist(), columns.tolist()) == ([3], [0])


def test_with_too_few_queries_the_costliest_instances_are_unmatched():
    rows, columns = assign(np.array([[3.0, 1.0, 2.0], [9.0, 9.0, 9.0]]), np.array([False, True]))
    assert (rows.tolist(), columns.tolist()) == ([0], [1])


def test_an_assignment_without_queries_or_instances_is_empty():
    assert [len(x) for x in assign(np.ones((2, 3)), np.array([True, True]))] == [0, 0]
    assert [len(x) for x in assign(np.ones((2, 0)))] == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_not_finite_raise(value):
    with pytest.raises(UserError, match=r"not finite.*lower learning rate"):
        assign(np.array([[value]]))


def test_match_frame_skips_absent_instances():
    """Instance 1 is absent and would have had the lowest cost."""
    cost = np.array([[2.0, -9.0, 1.0], [1.0, -9.0, 2.0]])
    assert match_frame(cost, np.array([True, False, True])).tolist() == [1, -1, 0]


def test_match_clip_needs_costs_only_where_an_instance_is_new():
    """Instance 0 appears on frame 0, instance 1 on frame 2, instance 2 never; query 1 is owned from frame 0 on."""
    visible = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    costs = {
        0: np.array([[5.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]]),
        2: np.array([[0, 4.0, 0], [0, 1.0, 0], [0, 2.0, 0]]),
    }
    assert match_clip(costs, visible).tolist() == [1, 2, -1]
