"""Augmentation: a mask painted into the frames is still the mask afterwards, whatever was drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from local2global.data.augment import (
    ClipAugmentation,
    ColourJitter,
    DriftingCrop,
    Identity,
    RandomFlip,
    RandomShortestEdge,
    ZoomCrop,
    resize_shortest_edge,
    shortest_edge_size,
)
from local2global.randomness import keyed_generator

SMALL_ZOOM = ZoomCrop(1.0, RandomShortestEdge((30, 50), 90), DriftingCrop(20, 44))
SMALL = ClipAugmentation(edges=(24, 32, 40), max_size=70, crop=SMALL_ZOOM, flip=0.5)


def painted(length: int = 3, height: int = 37, width: int = 53) -> tuple[Tensor, Tensor]:
    """A clip whose channels are the masks of three instances: an ellipse, a bar, and noise; all move."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = torch.zeros((3, length, height, width), dtype=torch.bool)
    for t in range(length):
        masks[0, t] = ((y / height - 0.4) / 0.25) ** 2 + ((x / width - 0.4 - 0.08 * t) / 0.25) ** 2 < 1
        masks[1, t] = (x > width // 2 + t) & (x < width // 2 + 4 + t)
        masks[2, t] = torch.rand((height, width), generator=keyed_generator(t)) < 0.5
    return masks.transpose(0, 1).to(torch.uint8) * 255, masks


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize(
    "step",
    [
        Identity(),
        RandomShortestEdge((20, 37, 61), 90),
        RandomShortestEdge((61,), 60),
        DriftingCrop(10, 30),
        RandomFlip(),
        SMALL_ZOOM,
        replace(SMALL, crop=None),
    ],
    ids=lambda step: type(step).__name__,
)
def test_masks_move_with_the_pixels(step, draw):
    frames, masks = step(*painted(), keyed_generator(draw))
    assert frames.dtype == torch.uint8
    assert masks.dtype == torch.bool
    assert frames.shape[-2:] == masks.shape[-2:]
    assert masks[0].any()
    assert torch.equal(frames.transpose(0, 1) > 127, masks)


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize(("step", "size"), [(SMALL, (37, 53)), (ClipAugmentation(), (360, 640))])
def test_masks_move_with_the_pixels_through_two_resizes(step, size, draw):
    """Between the two, masks are cut to black and white, frames are not: they may differ on grey outlines."""
    frames, masks = step(*painted(3, *size), keyed_generator(draw))
    shapes, masks = frames.transpose(0, 1)[:2], masks[:2]
    assert masks[0].any()
    assert masks[shapes > 210].all()
    assert not masks[shapes < 45].any()


def test_the_same_draw_gives_the_same_clip_and_another_one_another():
    results = [SMALL(*painted(), keyed_generator(draw))[0] for draw in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert results[0].shape != results[2].shape or not torch.equal(results[0], results[2])


def test_all_frames_share_one_draw():
    """A clip of equal frames stays one, unless the crop drifts."""
    frames, masks = painted(1)
    still = frames.repeat(4, 1, 1, 1), masks.repeat(1, 4, 1, 1)
    for draw in range(8):
        step = replace(SMALL, crop=None, jitter=ColourJitter(0.4, 0.4, 0.4))
        moved, moved_masks = step(*still, keyed_generator(draw))
        assert torch.equal(moved, moved[:1].expand_as(moved))
        assert torch.equal(moved_masks, moved_masks[:, :1].expand_as(moved_masks))


@pytest.mark.parametrize("step", [SMALL, RandomShortestEdge((20,), 90), DriftingCrop(10, 30), ColourJitter()])
def test_a_clip_without_instances_passes(step):
    frames, _ = painted()
    moved, masks = step(frames, torch.zeros((0, 3, 37, 53), dtype=torch.bool), keyed_generator(0))
    assert masks.shape == (0, 3, *moved.shape[-2:])


def position_clip(length: int, height: int, width: int) -> Tensor:
    """Channel 0 holds each pixel's row, channel 1 its column."""
    clip = torch.zeros((length, 3, height, width), dtype=torch.uint8)
    clip[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    clip[:, 1] = torch.arange(width, dtype=torch.uint8)
    return clip


def test_a_crop_drifts_in_a_straight_line():
    ways = set()
    for draw in range(40):
        masks = torch.zeros((0, 5, 100, 120), dtype=torch.bool)
        cut, _ = DriftingCrop(30, 60)(position_clip(5, 100, 120), masks, keyed_generator(draw))
        assert all(30 <= side <= 60 for side in cut.shape[-2:])
        corners = cut[:, :2, 0, 0].float()
        line = torch.linspace(0, 1, 5)[:, None] * (corners[-1] - corners[0]) + corners[0]
        assert (corners - line).abs().max() <= 0.5
        ways.add(tuple(torch.sign(corners[-1] - corners[0]).tolist()))
    assert {(1, 1), (1, -1), (-1, 1), (-1, -1)} <= ways


def test_a_crop_keeps_a_smaller_frame_whole():
    frames, masks = painted()
    cut, _ = DriftingCrop(384, 600)(frames, masks, keyed_generator(0))
    assert torch.equal(cut, frames)


def test_a_flip_comes_half_of_the_time_and_is_left_to_right():
    frames, masks = painted()
    flipped = 0
    for draw in range(200):
        moved, _ = RandomFlip(0.5)(frames, masks, keyed_generator(draw))
        if not torch.equal(moved, frames):
            assert torch.equal(moved.flip(-1), frames)
            flipped += 1
    assert 70 < flipped < 130


def test_the_papers_sizes_are_all_drawn():
    frames, masks = (
        torch.zeros((1, 3, 90, 120), dtype=torch.uint8),
        torch.zeros((0, 1, 90, 120), dtype=torch.bool),
    )
    step = ClipAugmentation(crop=None)
    drawn = {tuple(step(frames, masks, keyed_generator(i))[0].shape[-2:]) for i in range(80)}
    assert {height for height, _ in drawn} == {288, 320, 352, 384, 416, 448, 480, 512}
    assert all(width == int(height * 4 / 3 + 0.5) for height, width in drawn)


def test_the_papers_zoom_is_drawn_half_of_the_time():
    """Frames of 500x500: a zoomed clip is seldom square, a plain one always is."""
    frames = torch.zeros((1, 3, 500, 500), dtype=torch.uint8)
    masks = torch.zeros((0, 1, 500, 500), dtype=torch.bool)
    shapes = [ZoomCrop()(frames, masks, keyed_generator(i))[0].shape[-2:] for i in range(60)]
    assert 15 < sum(tuple(shape) == (500, 500) for shape in shapes) < 45
    assert all(384 <= side <= 600 for shape in shapes for side in shape)


def test_jitter_of_nothing_changes_nothing():
    frames = torch.randint(0, 256, (2, 3, 9, 9), generator=keyed_generator(0)).to(torch.uint8)
    moved, _ = ColourJitter(0, 0, 0)(frames, torch.zeros((0, 2, 9, 9), dtype=torch.bool), keyed_generator(0))
    assert torch.equal(moved, frames)


def test_jitter_keeps_grey_grey_and_masks_alone():
    frames, masks = painted()
    grey = frames[:, :1].expand(-1, 3, -1, -1)
    moved, moved_masks = ColourJitter(0.3, 0.3, 0.9)(grey, masks, keyed_generator(2))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.equal(moved, grey)
    assert moved_masks is masks


@pytest.mark.parametrize(
    ("size", "short_edge", "max_size", "expected"),
    [
        ((720, 1280), 360, 1333, (360, 640)),
        ((1280, 720), 360, 1333, (640, 360)),
        ((1080, 1920), 720, 1000, (563, 1000)),
        ((100, 1000), 360, 768, (77, 768)),
        ((270, 480), 360, 640, (360, 640)),
        ((240, 432), 96, 640, (96, 173)),
        ((5, 5), 5, 5, (5, 5)),
        ((1, 1000), 10, 100, (1, 100)),
    ],
)
def test_sizes_are_rounded_as_detectron2_rounds(size, short_edge, max_size, expected):
    """Scale, cap, add a half, cut: 1080x1920 to 720x1280 to 562.5x1000 to 563x1000."""
    assert shortest_edge_size(size, short_edge, max_size) == expected
    assert (
        resize_shortest_edge(torch.zeros((3, *size), dtype=torch.uint8), short_edge, max_size).shape[1:]
        == expected
    )


def test_resizing_averages_what_it_shrinks():
    """A fine checkerboard becomes an even grey, not black or white."""
    frame = (
        (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8).expand(3, 64, 64)
    )
    small = resize_shortest_edge(frame, 16, 100)
    assert (small.int() - 127).abs().max() <= 8
