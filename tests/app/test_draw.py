"""Drawing of masks, outlines, labels and boxes on a frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from local2global.app.draw import colour, draw
from local2global.structures import FrameResult

CLASSES = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]


def result(masks: Tensor, ids: list[int]) -> FrameResult:
    count = len(masks)
    return FrameResult(
        0,
        torch.tensor(ids, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count,), 0.87),
        masks,
        torch.zeros(count, 4),
    )


def square(top: int, left: int, side: int, height: int = 120, width: int = 200) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


GREY = torch.full((3, 120, 200), 100, dtype=torch.uint8)


def test_pixels_outside_mask_and_label_are_unchanged():
    mask = square(60, 50, 40)
    drawn = draw(GREY, result(mask[None], [3]), CLASSES)
    changed = (drawn != GREY).any(0)
    assert changed[mask].all()
    beyond = changed & ~mask
    rows = beyond.nonzero()[:, 0]
    assert beyond.any()
    assert 30 < rows.min() <= rows.max() < 60, "only the label, just above the mask"
    assert not changed[:, :50].any()


def test_a_mask_is_tinted_inside_and_outlined_in_its_colour():
    drawn = draw(GREY, result(square(60, 50, 40)[None], [3]), CLASSES)
    assert tuple(drawn[:, 60, 60].tolist()) == colour(3)
    expected = [round(100 * 0.55 + level * 0.45) for level in colour(3)]
    assert max(abs(a - b) for a, b in zip(drawn[:, 80, 70].tolist(), expected, strict=True)) <= 1


def test_the_input_frame_is_not_modified():
    frame = GREY.clone()
    draw(frame, result(square(60, 50, 40)[None], [0]), CLASSES)
    assert torch.equal(frame, GREY)


def test_a_frame_without_objects_is_unchanged():
    empty = torch.zeros(0, 120, 200, dtype=torch.bool)
    assert torch.equal(draw(GREY, result(empty, []), CLASSES), GREY)


def test_an_empty_mask_has_no_label():
    assert torch.equal(draw(GREY, result(square(0, 0, 0)[None], [0]), CLASSES), GREY)


def test_a_small_object_stays_visible_on_a_large_one():
    masks = torch.stack([square(70, 70, 10), square(30, 30, 80)])
    drawn = draw(GREY, result(masks, [1, 2]), CLASSES)
    assert tuple(drawn[:, 79, 75].tolist()) == colour(1)


@pytest.mark.parametrize("corner", [(0, 0), (0, 190), (110, 190)])
def test_labels_stay_inside_the_frame(corner):
    drawn = draw(GREY, result(square(*corner, 10)[None], [12]), CLASSES)
    assert drawn.shape == GREY.shape
    assert (drawn != GREY).any()


def test_a_label_larger_than_the_frame_is_cropped():
    frame = torch.zeros(3, 6, 9, dtype=torch.uint8)
    assert draw(frame, result(torch.ones(1, 6, 9, dtype=torch.bool), [0]), CLASSES).shape == (3, 6, 9)


def test_neighbouring_identities_have_distant_colours():
    """Any two of eight consecutive ids differ by at least 40 levels in some channel."""
    for start in range(0, 40):
        colours = [colour(i) for i in range(start, start + 8)]
        for i, first in enumerate(colours):
            for second in colours[:i]:
                assert max(abs(a - b) for a, b in zip(first, second, strict=True)) >= 40


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="120, 200"):
        draw(GREY, result(torch.ones(1, 5, 5, dtype=torch.bool), [0]), CLASSES)
