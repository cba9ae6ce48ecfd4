"""Drawing of masks, outlines, labels and boxes on a frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from local2global.app.draw import Look, _bounds, _centre, colour, draw
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
        torch.tensor([tight_box(mask) for mask in masks]).reshape(count, 4),
    )


def tight_box(mask: Tensor) -> list[float]:
    """(cx, cy, w, h) in [0, 1] of the pixels of a mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return [0.0] * 4
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = mask.shape
    box = [
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    ]
    return [float(x) for x in box]


def square(top: int, left: int, side: int, height: int = 120, width: int = 200) -> Tensor:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


GREY = torch.full((3, 120, 200), 100, dtype=torch.uint8)
MASKS_ONLY = Look(hidden=frozenset({"boxes", "labels"}))
NO_BOXES = Look(hidden=frozenset({"boxes"}))


def test_pixels_outside_mask_and_label_are_unchanged():
    mask = square(60, 50, 40)
    drawn = draw(GREY, result(mask[None], [3]), CLASSES, NO_BOXES)
    changed = (drawn != GREY).any(0)
    assert changed[mask].all()
    rows = (changed & ~mask).nonzero()[:, 0]
    assert 30 < rows.min() <= rows.max() < 60, "only the label, just above the mask, which is narrower"


def test_a_mask_is_tinted_inside_and_outlined_in_its_colour():
    drawn = draw(GREY, result(square(60, 50, 40)[None], [3]), CLASSES, MASKS_ONLY)
    assert tuple(drawn[:, 60, 60].tolist()) == colour(3)
    expected = [round(100 * 9 / 16 + level * 7 / 16) for level in colour(3)]
    assert max(abs(a - b) for a, b in zip(drawn[:, 80, 70].tolist(), expected, strict=True)) <= 1


def test_a_box_is_drawn_round_its_pixels_and_hidden_on_request():
    mask = square(60, 50, 40)
    boxed = draw(GREY, result(mask[None], [3]), CLASSES, Look(hidden=frozenset({"masks", "labels"})))
    changed = (boxed != GREY).any(0)
    assert tuple(boxed[:, 59, 49].tolist()) == colour(3)
    assert not changed[mask].any()
    assert int(changed.sum()) == 42 * 42 - 40 * 40, "one pixel wide"


@pytest.mark.parametrize(("color_by", "number"), [("id", 1), ("class", 0)])
def test_colours_follow_the_identity_or_the_class(color_by, number):
    drawn = draw(GREY, result(square(60, 50, 40)[None], [1]), CLASSES, Look(color_by, MASKS_ONLY.hidden))
    assert tuple(drawn[:, 60, 60].tolist()) == colour(number)


def test_hiding_everything_draws_nothing():
    nothing = Look(hidden=frozenset({"masks", "boxes", "labels"}))
    assert torch.equal(draw(GREY, result(square(60, 50, 40)[None], [1]), CLASSES, nothing), GREY)


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
    drawn = draw(GREY, result(masks, [1, 2]), CLASSES, MASKS_ONLY)
    assert tuple(drawn[:, 79, 75].tolist()) == colour(1)


@pytest.mark.parametrize("corner", [(0, 0), (0, 190), (110, 190)])
def test_labels_stay_inside_the_frame(corner):
    drawn = draw(GREY, result(square(*corner, 10)[None], [12]), CLASSES)
    assert drawn.shape == GREY.shape
    assert (drawn != GREY).any()


def test_a_label_larger_than_the_frame_is_cropped():
    frame = torch.zeros(3, 6, 9, dtype=torch.uint8)
    assert draw(frame, result(torch.ones(1, 6, 9, dtype=torch.bool), [0]), CLASSES).shape == (3, 6, 9)


# --- Labels ---


def centre(mask: Tensor) -> tuple[int, int]:
    pixels = mask.numpy()
    return _centre(pixels, _bounds(pixels))[0]


def test_a_label_lies_on_the_largest_part():
    mask = square(10, 10, 20) | square(40, 100, 60)
    row, column = centre(mask)
    assert abs(row - 70) <= 2
    assert abs(column - 130) <= 2


def test_the_centre_of_a_ring_or_a_bow_is_on_the_mask():
    ring = square(10, 10, 100) & ~square(25, 25, 70)
    bow = square(10, 60, 100) & ~square(10, 75, 85)
    thin = torch.zeros(120, 200, dtype=torch.bool)
    thin[torch.arange(120), torch.arange(120)] = True
    for mask in (ring, bow, thin):
        assert mask[centre(mask)]


def test_a_centre_moves_by_one_pixel_when_the_mask_does():
    first, second = centre(square(10, 30, 90)), centre(square(10, 31, 90))
    assert (second[0] - first[0], second[1] - first[1]) == (0, 1)


def test_labels_do_not_cover_each_other():
    """Four objects at one place: four labels, each whole, found by the area of its background colour."""
    frame = torch.full((3, 360, 640), 100, dtype=torch.uint8)
    only_labels = Look(hidden=frozenset({"masks", "boxes"}))

    def area(drawn: Tensor, i: int) -> int:
        return int((drawn == torch.tensor(colour(i), dtype=torch.uint8)[:, None, None]).all(0).sum())

    masks = torch.stack([square(150 + i, 300 + i, 20, 360, 640) for i in range(4)])
    together = draw(frame, result(masks, [0, 1, 2, 3]), CLASSES, only_labels)
    for i in range(4):
        alone = draw(frame, result(masks[i : i + 1], [i]), CLASSES, only_labels)
        assert area(together, i) == area(alone, i) > 100


def test_lines_and_text_scale_with_the_frame():
    """At twice the size, a label has about four times the area, and an outline twice the width."""
    areas = []
    for scale in (6, 12):
        size = (120 * scale, 200 * scale)
        frame = torch.full((3, *size), 100, dtype=torch.uint8)
        mask = square(60 * scale, 50 * scale, 10 * scale, *size)
        label = draw(frame, result(mask[None], [0]), CLASSES, Look(hidden=frozenset({"masks", "boxes"})))
        drawn = draw(frame, result(mask[None], [0]), CLASSES, MASKS_ONLY)
        line = (
            (drawn == torch.tensor(colour(0), dtype=torch.uint8)[:, None, None]).all(0)[:, 55 * scale].sum()
        )
        areas.append((int((label != frame).any(0).sum()), int(line)))
    assert areas[1][0] == pytest.approx(4 * areas[0][0], rel=0.15)
    assert areas[1][1] == 2 * areas[0][1]


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="120, 200"):
        draw(GREY, result(torch.ones(1, 5, 5, dtype=torch.bool), [0]), CLASSES)
