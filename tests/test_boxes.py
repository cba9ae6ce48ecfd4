"""Boxes and Mask2Box, against pictures small enough to count by hand."""

import pytest
import torch

from local2global.boxes import (
    box_iou,
    cxcywh_to_xyxy,
    generalized_box_iou,
    mask_iou,
    mask_to_box,
    xyxy_to_cxcywh,
)

NOWHERE = torch.tensor([0.9, 0.8, 0.7, 0.6])


def picture(*rows):
    """`#` is a positive logit, `0` a logit of exactly zero, everything else is negative."""
    return torch.tensor([[{"#": 0.5, "0": 0.0}.get(c, -3.0) for c in row] for row in rows])


def test_centre_and_size_to_corners_and_back():
    box = torch.tensor([0.5, 0.25, 0.4, 0.1])
    torch.testing.assert_close(cxcywh_to_xyxy(box), torch.tensor([0.3, 0.2, 0.7, 0.3]))
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(box)), box)


def test_the_last_pixel_belongs_to_the_box():
    """Columns 3..5 of 8 and rows 1..2 of 4: corners (3, 1) and (6, 3)."""
    mask = picture("........", "...###..", "....#...", "........")
    torch.testing.assert_close(mask_to_box(mask, NOWHERE), torch.tensor([4.5 / 8, 2 / 4, 3 / 8, 2 / 4]))


def test_one_pixel_is_one_pixel_wide():
    mask = picture("........", "........", "........", ".......#")
    torch.testing.assert_close(mask_to_box(mask, NOWHERE), torch.tensor([7.5 / 8, 3.5 / 4, 1 / 8, 1 / 4]))


def test_a_full_mask_is_the_frame():
    torch.testing.assert_close(mask_to_box(torch.ones(5, 7), NOWHERE), torch.tensor([0.5, 0.5, 1.0, 1.0]))


def test_a_logit_of_zero_is_not_in_the_mask():
    mask = picture("0...", ".#..", "...0")
    torch.testing.assert_close(mask_to_box(mask, NOWHERE), torch.tensor([1.5 / 4, 1.5 / 3, 1 / 4, 1 / 3]))


@pytest.mark.parametrize(
    "empty", [torch.full((4, 8), -1.0), torch.zeros(4, 8), torch.full((4, 8), -torch.inf)]
)
def test_an_empty_mask_is_where_it_was_last_seen(empty):
    assert torch.equal(mask_to_box(empty, NOWHERE), NOWHERE)


def test_each_mask_of_a_batch_has_its_own_fallback():
    masks = torch.stack([picture("#...", "...."), picture("....", "....")]).expand(3, 2, 2, 4)
    fallback = torch.rand(3, 2, 4)
    boxes = mask_to_box(masks, fallback)
    torch.testing.assert_close(boxes[:, 0], torch.tensor([1 / 8, 1 / 4, 1 / 4, 1 / 2]).expand(3, 4))
    assert torch.equal(boxes[:, 1], fallback[:, 1])


def test_boxes_are_of_the_unpadded_frame():
    """The frame fills 4 of 8 columns and 2 of 4 rows: column 2 of row 0 is at 2/4 .. 3/4, 0 .. 1/2."""
    mask = picture("..#.....", "........", "........", "........")
    box = mask_to_box(mask, NOWHERE, extent=torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(box, torch.tensor([2.5 / 4, 0.25, 1 / 4, 1 / 2]))


def test_a_pixel_that_the_frame_only_half_covers_ends_at_the_frames_edge():
    """The frame is 7.5 by 3.25 mask pixels; the last pixel reaches beyond it."""
    mask = picture("........", "........", "........", ".......#")
    box = cxcywh_to_xyxy(mask_to_box(mask, NOWHERE, extent=torch.tensor([7.5, 3.25])))
    torch.testing.assert_close(box, torch.tensor([7 / 7.5, 3 / 3.25, 1.0, 1.0]))


def test_maskdinos_rule_leaves_the_last_pixel_out_and_sends_nothing_to_the_corner():
    corner = torch.tensor([1.0, 1.0, 0.0, 0.0])
    mask = picture("........", "...###..", "....#...", "........")
    torch.testing.assert_close(
        mask_to_box(mask, corner, edge=0), torch.tensor([4 / 8, 1.5 / 4, 2 / 8, 1 / 4])
    )
    assert torch.equal(mask_to_box(-torch.ones(4, 8), corner, edge=0), corner)


def test_detectron2s_bitmask_rule_is_the_inclusive_one_with_zeros_for_nothing():
    mask = picture("........", "...###..", "....#...", "........")
    zeros = torch.zeros(4)
    torch.testing.assert_close(mask_to_box(mask, zeros), torch.tensor([4.5 / 8, 2 / 4, 3 / 8, 2 / 4]))
    assert torch.equal(mask_to_box(-torch.ones(4, 8), zeros), zeros)


def test_half_precision_masks_give_full_precision_boxes():
    box = mask_to_box(torch.ones(3, 1001, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16))
    assert box.dtype == torch.float32
    torch.testing.assert_close(box, torch.tensor([0.5, 0.5, 1.0, 1.0]))


def test_no_masks_no_boxes():
    assert mask_to_box(torch.zeros(2, 0, 4, 8), torch.zeros(2, 0, 4)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("one", "other", "iou", "giou"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),
        ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4, 1 / 4),
        ((0, 0, 1, 1), (9, 9, 10, 10), 0, -98 / 100),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0),
    ],
)
def test_overlaps_by_hand(one, other, iou, giou):
    one, other = torch.tensor(one).float(), torch.tensor(other).float()
    torch.testing.assert_close(box_iou(one, other), torch.tensor(float(iou)), atol=1e-5, rtol=0)
    torch.testing.assert_close(generalized_box_iou(one, other), torch.tensor(float(giou)), atol=1e-5, rtol=0)
    torch.testing.assert_close(generalized_box_iou(other, one), generalized_box_iou(one, other))


def test_overlaps_broadcast_to_all_pairs():
    boxes = cxcywh_to_xyxy(torch.rand(5, 4))
    pairs = generalized_box_iou(boxes[:, None], boxes[None, :3])
    assert pairs.shape == (5, 3)
    torch.testing.assert_close(pairs[4, 2], generalized_box_iou(boxes[4], boxes[2]))


def test_two_empty_boxes_have_finite_gradients():
    boxes = torch.zeros(2, 4, requires_grad=True)
    generalized_box_iou(boxes[0], boxes[1]).backward()
    assert boxes.grad.isfinite().all()


def test_mask_iou_compares_all_pairs_of_masks():
    first = torch.stack([picture("###."), picture("....")]) > 0
    second = torch.stack([picture(".###"), picture("###."), picture("....")]) > 0
    expected = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(mask_iou(first, second), expected)
    batch = mask_iou(torch.stack([first, first]), torch.stack([second, second.flip(0)]))
    torch.testing.assert_close(batch, torch.stack([expected, expected.flip(1)]))
