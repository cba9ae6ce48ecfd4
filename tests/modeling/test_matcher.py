"""Costs by hand, and the assignment."""

import math

import numpy as np
import pytest
import torch

from local2global.modeling.losses import dice_loss, sigmoid_ce_loss
from local2global.modeling.matcher import Matcher, assign, class_cost, dice_cost, mask_cost


def test_class_cost_by_hand():
    """At p = 1/2: .25 * .25 * log 2 for being it, less .75 * .25 * log 2 for not."""
    expected = (0.25 - 0.75) * 0.25 * math.log(2)
    torch.testing.assert_close(class_cost(torch.zeros(1, 1)), torch.tensor([[expected]]), atol=1e-4, rtol=0)


def test_mask_costs_are_the_losses_of_all_pairs():
    logits = torch.tensor([[0.0, math.log(3)], [2.0, -1.0]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    pairs = logits[:, None].expand(2, 3, 2), truth[None].expand(2, 3, 2)
    torch.testing.assert_close(mask_cost(logits, truth), sigmoid_ce_loss(*pairs))
    torch.testing.assert_close(dice_cost(logits, truth), dice_loss(*pairs))


def test_terms_add_up_with_their_weights():
    """Each weight alone, against its term by hand."""
    logits, masks = torch.zeros(1, 2), torch.zeros(1, 4)
    box, true_box = torch.tensor([[0.25, 0.5, 0.5, 0.2]]), torch.tensor([[0.75, 0.5, 0.5, 0.2]])
    label, true_mask = torch.tensor([1]), torch.tensor([[1.0, 1, 0, 0]])
    off = dict.fromkeys(["cost_class", "cost_mask", "cost_dice", "cost_box", "cost_giou"], 0.0)
    given = (logits, box, masks, label, true_box, true_mask)
    by_hand = {
        "cost_class": -0.5 * 0.25 * math.log(2),
        "cost_mask": math.log(2),
        "cost_dice": 1 - (2 + 1) / (2 + 2 + 1),
        "cost_box": 0.5,
        "cost_giou": 0.0,
    }
    for name, value in by_hand.items():
        assert Matcher(**(off | {name: 1.0})).cost(*given).item() == pytest.approx(value, abs=1e-4)
    whole = 4 * by_hand["cost_class"] + 5 * (math.log(2) + 0.4 + 0.5)
    assert Matcher().cost(*given).item() == pytest.approx(whole, abs=1e-3)


def test_costs_are_full_precision_under_autocast():
    matcher = Matcher()
    given = (torch.randn(6, 3), torch.rand(6, 4), torch.randn(6, 99), torch.tensor([0, 2]), torch.rand(2, 4))
    truth = (torch.rand(2, 99) > 0.5).float()
    full = matcher.cost(*given, truth)
    with torch.autocast("cpu", torch.bfloat16):
        half = matcher.cost(*given, truth)
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_no_instances_cost_nothing():
    cost = Matcher().cost(
        *(torch.randn(6, 3), torch.rand(6, 4), torch.randn(6, 9)),
        *(torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0, 9)),
    )
    assert cost.shape == (6, 0)


def test_the_cheapest_assignment_is_not_the_greedy_one():
    """Greedy takes (0, 0) for 1 and pays 9; the cheapest pairs are 2 + 2."""
    rows, columns = assign(np.array([[1.0, 2.0], [2.0, 9.0]]))
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: 1, 1: 0}


def test_taken_queries_are_not_given_again():
    cost = np.array([[-100.0], [5.0], [1.0], [3.0]])
    rows, columns = assign(cost, np.array([True, False, True, False]))
    assert (rows.tolist(), columns.tolist()) == ([3], [0])


def test_when_queries_run_out_the_dearest_instances_are_left():
    rows, columns = assign(np.array([[3.0, 1.0, 2.0], [9.0, 9.0, 9.0]]), np.array([False, True]))
    assert (rows.tolist(), columns.tolist()) == ([0], [1])


def test_all_taken_or_nothing_to_give():
    assert [len(x) for x in assign(np.ones((2, 3)), np.array([True, True]))] == [0, 0]
    assert [len(x) for x in assign(np.ones((2, 0)))] == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cost_that_is_not_a_number_is_said(value):
    with pytest.raises(ValueError, match="not finite"):
        assign(np.array([[value]]))
