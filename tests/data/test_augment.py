"""Augmentation: masks painted into the frames still agree with the masks afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from local2global.data.augment import (
    ClipAugmentation,
    ColourJitter,
    DriftingCrop,
    Identity,
    LargeScaleJitter,
    RandomFlip,
    RandomShortestEdge,
    Turn,
    ZoomCrop,
    resize_shortest_edge,
    shortest_edge_size,
)
from local2global.data.views import View
from local2global.errors import UserError
from local2global.randomness import keyed_generator

SMALL_ZOOM = ZoomCrop(1.0, RandomShortestEdge((30, 50), 90), DriftingCrop(20, 44))
SMALL = ClipAugmentation(edges=(24, 32, 40), max_size=70, crop=SMALL_ZOOM, flip=0.5)


def painted(length: int = 3, height: int = 37, width: int = 53) -> tuple[Tensor, Tensor]:
    """A clip whose channels are the masks of three moving instances: an ellipse, a bar, and noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = torch.zeros((3, length, height, width), dtype=torch.bool)
    for t in range(length):
        masks[0, t] = ((y / height - 0.4) / 0.25) ** 2 + ((x / width - 0.4 - 0.08 * t) / 0.25) ** 2 < 1
        masks[1, t] = (x > width // 2 + t) & (x < width // 2 + 4 + t)
        masks[2, t] = torch.rand((height, width), generator=keyed_generator(t)) < 0.5
    return masks.transpose(0, 1).to(torch.uint8) * 255, masks


def show(view: View, frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a view for frames (T, 3, H, W) and masks (M, T, H, W)."""
    drawn, moved = [], []
    for i in range(len(view)):
        drawn.append(view.draw(frames[i], i))
        rows, columns = torch.from_numpy(view.rows(i)), torch.from_numpy(view.columns(i))
        turned = view.rotate_masks(masks[:, i], i) if view.angles else masks[:, i, rows][:, :, columns]
        moved.append(view.place(turned))
    return torch.stack(drawn), torch.stack(moved, dim=1)


def apply(step, frames: Tensor, masks: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    view = step.view(View.whole(tuple(frames.shape[-2:]), len(frames)), keyed_generator(draw))
    return show(view, frames, masks)


STEPS = [
    Identity(),
    RandomShortestEdge((20, 37, 61), 90),
    RandomShortestEdge((61,), 60),
    DriftingCrop(10, 30),
    RandomFlip(),
    SMALL_ZOOM,
    replace(SMALL, crop=None),
    SMALL,
    Turn(),
    replace(SMALL, turn=Turn(40.0)),
    LargeScaleJitter(side=48),
]


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_masks_move_with_the_pixels(step, draw):
    """Pixels entirely inside an instance are in its mask, pixels entirely outside are not; both kinds occur.

    Noise is excluded: after shrinking it has no such pixels.
    """
    frames, masks = apply(step, *painted(), draw)
    assert frames.dtype == torch.uint8
    assert masks.dtype == torch.bool
    assert frames.shape[-2:] == masks.shape[-2:]
    if isinstance(step, LargeScaleJitter):
        frames = frames.where(~on_canvas(step, draw), 0)
    pixels, masks = frames.transpose(0, 1)[:2], masks[:2]
    assert (pixels[0] > 235).any()
    assert masks[pixels > 235].all()
    assert not masks[pixels < 20].any()
    assert ((pixels > 127) != masks).float().mean() < 0.08, "differences are on outlines only"


def on_canvas(step: LargeScaleJitter, draw: int) -> Tensor:
    """(canvas) bool, the grey padding of the canvas."""
    view = step.view(View.whole((37, 53), 3), keyed_generator(draw))
    grey = torch.ones(view.canvas, dtype=torch.bool)
    grey[: view.size[0], : view.size[1]] = False
    return grey


@pytest.mark.parametrize("draw", range(6))
@pytest.mark.parametrize(
    "step", [Identity(), DriftingCrop(10, 30), RandomFlip()], ids=lambda s: type(s).__name__
)
def test_without_resizing_every_pixel_is_kept(step, draw):
    frames, masks = apply(step, *painted(), draw)
    assert torch.equal(frames.transpose(0, 1) > 127, masks)


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("turn", [None, Turn()], ids=["video", "image"])
def test_the_papers_recipe_at_full_size(turn, draw):
    frames, masks = apply(ClipAugmentation(turn=turn), *painted(4, 360, 640), draw)
    pixels, masks = frames.transpose(0, 1)[:2], masks[:2]
    assert 288 <= min(frames.shape[-2:]) <= 512
    assert max(frames.shape[-2:]) <= 768
    # Rotated pixels are interpolated twice: a few outside the mask are bright.
    few = pixels.numel() // 10_000 if turn else 0
    assert (~masks[pixels > 235]).sum() <= few
    assert masks[pixels < 20].sum() <= few


def test_crop_and_mirror_commute():
    """Cropping columns 4 to 9 of a mirrored frame of width 20 equals mirroring columns 10 to 15."""
    frames, masks = painted(1, 20, 20)
    view = View.whole((20, 20), 1)
    one = show(view.mirrored().cut([(2, 4)], (8, 6)), frames, masks)
    other = show(view.cut([(2, 10)], (8, 6)).mirrored(), frames, masks)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert torch.equal(one[0][0], frames[0, :, 2:10, 10:16].flip(-1))


def test_a_clip_is_determined_by_its_generator():
    results = [apply(SMALL, *painted(), draw)[0] for draw in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert results[0].shape != results[2].shape or not torch.equal(results[0], results[2])


def test_all_frames_of_a_clip_have_the_same_augmentation():
    """Equal frames stay equal, unless the crop drifts or the frames rotate."""
    frames, masks = painted(1)
    still = frames.repeat(4, 1, 1, 1), masks.repeat(1, 4, 1, 1)
    step = replace(SMALL, crop=None, jitter=ColourJitter(0.4, 0.4, 0.4))
    for draw in range(8):
        moved, moved_masks = apply(step, *still, draw)
        moved = step.recolour(moved, keyed_generator(draw))
        assert torch.equal(moved, moved[:1].expand_as(moved))
        assert torch.equal(moved_masks, moved_masks[:, :1].expand_as(moved_masks))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_a_clip_without_instances_is_augmented(step):
    frames, _ = painted()
    moved, masks = apply(step, frames, torch.zeros((0, 3, 37, 53), dtype=torch.bool), 0)
    assert masks.shape == (0, 3, *moved.shape[-2:])


# -------------------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("angle", [-15.0, 4.0, 33.0])
def test_rotation_agrees_with_pillow(angle):
    """Rotation is counter-clockwise about a point, with black outside; both implementations round."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.nn.functional.avg_pool2d(torch.rand((1, 3, 60, 80), generator=generator), 5, 1, 2)[0]
    frame = (frame * 255).to(torch.uint8)
    view = replace(View.whole((60, 80), 1), angles=(angle,), centre=(0.45, 0.6))
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    turned = image.rotate(angle, Image.Resampling.BILINEAR, center=(36, 36))
    difference = np.abs(view.draw(frame, 0).permute(1, 2, 0).numpy().astype(int) - np.array(turned))
    assert np.quantile(difference, 0.95) <= 1  # Pillow omits pixels at the border.


def test_rotation_angles_are_sorted_and_uniform():
    """Angles ascend in half of the clips, span -15 to 15, and the centre spans 40 to 60 % of the frame."""
    views = [Turn().view(View.whole((10, 10), 4), keyed_generator(i)) for i in range(300)]
    rising = [list(view.angles) == sorted(view.angles) for view in views]
    falling = [list(view.angles) == sorted(view.angles, reverse=True) for view in views]
    assert all(a or b for a, b in zip(rising, falling, strict=True))
    assert 110 < sum(rising) < 190
    angles = [angle for view in views for angle in view.angles]
    assert -15 <= min(angles) < -14.8
    assert 14.8 < max(angles) <= 15
    assert np.mean(angles) == pytest.approx(0, abs=1)
    centres = np.array([view.centre for view in views])
    assert 0.4 <= centres.min() < 0.41
    assert 0.59 < centres.max() <= 0.6


def test_a_rotated_point_remains_one_pixel():
    """A white pixel 10 to the right of the centre is 10 above it after a rotation of 90 degrees."""
    frames = torch.zeros((1, 3, 41, 41), dtype=torch.uint8)
    frames[..., 20, 30] = 255
    view = replace(View.whole((41, 41), 1), angles=(90.0,))
    drawn, masks = show(view, frames, frames[:, :1].transpose(0, 1) > 0)
    assert drawn[0, 0].nonzero().tolist() == [[10, 20]]
    assert masks[0, 0].nonzero().tolist() == [[10, 20]]


# ------------------------------------------------------------------------------------------ large-scale jitter


def test_large_scale_jitter_draws_scales_from_a_tenth_to_two():
    """An image of 100x50 on a square of 64: at scale s it is 64 s high and half as wide, cropped to 64."""
    views = [LargeScaleJitter(64).view(View.whole((100, 50), 1), keyed_generator(i)) for i in range(400)]
    assert all(view.canvas == (64, 64) for view in views)
    heights = [view.size[0] for view in views]
    assert min(heights) in (6, 7)
    assert max(heights) == 64
    small = [view for view in views if view.size[0] < 64]
    assert all(view.window == (100, 50) and abs(view.size[1] - view.size[0] / 2) <= 1 for view in small)
    assert len(small) / len(views) == pytest.approx((1 - 0.1) / (2 - 0.1), abs=0.08)
    large = [view for view in views if view.size[0] == 64]
    assert {view.corners[0][0] > 20 for view in large} == {True, False}, "crops are random"
    assert 150 < sum(view.flipped for view in views) < 250


def test_large_scale_jitter_pads_with_grey():
    frames, masks = painted(1)
    for draw in range(6):
        view = LargeScaleJitter(48).view(View.whole((37, 53), 1), keyed_generator(draw))
        drawn, moved = show(view, frames, masks)
        assert drawn.shape == (1, 3, 48, 48)
        assert (drawn[..., view.size[0] :, :] == 128).all()
        assert (drawn[..., view.size[1] :] == 128).all()
        assert not moved[..., view.size[0] :, :].any()
        assert not moved[..., view.size[1] :].any()


# ------------------------------------------------------------------------------------------- crops, flips, sizes


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
        cut, _ = apply(DriftingCrop(30, 60), position_clip(5, 100, 120), masks, draw)
        assert all(30 <= side <= 60 for side in cut.shape[-2:])
        corners = cut[:, :2, 0, 0].float()
        line = torch.linspace(0, 1, 5)[:, None] * (corners[-1] - corners[0]) + corners[0]
        assert (corners - line).abs().max() <= 0.5
        ways.add(tuple(torch.sign(corners[-1] - corners[0]).tolist()))
    assert {(1, 1), (1, -1), (-1, 1), (-1, -1)} <= ways


def test_a_frame_smaller_than_the_crop_is_unchanged():
    frames, masks = painted()
    cut, _ = apply(DriftingCrop(384, 600), frames, masks, 0)
    assert torch.equal(cut, frames)


def test_a_flip_is_horizontal_with_probability_one_half():
    frames, masks = painted()
    flipped = 0
    for draw in range(200):
        moved, _ = apply(RandomFlip(0.5), frames, masks, draw)
        if not torch.equal(moved, frames):
            assert torch.equal(moved.flip(-1), frames)
            flipped += 1
    assert 70 < flipped < 130


def test_all_sizes_of_the_papers_recipe_are_drawn():
    step = ClipAugmentation(crop=None)
    drawn = {step.view(View.whole((90, 120), 1), keyed_generator(i)).size for i in range(80)}
    assert {height for height, _ in drawn} == {288, 320, 352, 384, 416, 448, 480, 512}
    assert all(width == int(height * 4 / 3 + 0.5) for height, width in drawn)


def test_the_papers_zoom_has_probability_one_half():
    """Frames of 500x500: a zoomed clip is rarely square, an unzoomed one always is."""
    shapes = [ZoomCrop().view(View.whole((500, 500), 1), keyed_generator(i)).size for i in range(60)]
    assert 15 < sum(shape == (500, 500) for shape in shapes) < 45
    assert all(384 <= side <= 600 for shape in shapes for side in shape)


def test_colour_jitter_of_strength_zero_is_the_identity():
    frames = torch.randint(0, 256, (2, 3, 9, 9), generator=keyed_generator(0)).to(torch.uint8)
    assert torch.equal(ColourJitter(0, 0, 0).recolour(frames, keyed_generator(0)), frames)


def test_colour_jitter_keeps_grey_pixels_grey():
    frames, _ = painted()
    grey = frames[:, :1].expand(-1, 3, -1, -1)
    moved = ColourJitter(0.3, 0.3, 0.9).recolour(grey, keyed_generator(2))
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert not torch.equal(moved, grey)


# ----------------------------------------------------------------------------------------- decoded no larger


def test_reduced_decoding_is_used_only_if_the_output_is_no_larger():
    whole = View.whole((720, 1280), 2)
    assert [whole.resized(size).shrink for size in [(360, 640), (361, 642), (180, 320), (90, 160)]] == [
        2,
        1,
        4,
        8,
    ]
    assert View.whole((721, 1280), 2).resized((90, 160)).shrink == 1, "an odd side cannot be halved"
    assert replace(whole.resized((90, 160)), angles=(3.0, 4.0)).shrink == 1
    zoomed = whole.resized((500, 889)).cut([(31, 17), (33, 19)], (400, 600))
    assert zoomed.resized((288, 432)).shrink == 2, "corners are even"


def test_a_frame_decoded_at_half_size_gives_the_same_output():
    """Decoding at half size (means of 2x2 pixels) gives the same output, up to the filter's width."""
    smooth = torch.nn.functional.avg_pool2d(
        torch.rand((1, 3, 100, 120), generator=keyed_generator(1)), 9, 1, 4
    )
    frame = (smooth[0] * 255).to(torch.uint8)
    half = torch.nn.functional.avg_pool2d(frame[None].float(), 2)[0].round().to(torch.uint8)
    for draw in range(10):
        view = replace(SMALL, edges=(16,)).view(View.whole((100, 120), 2), keyed_generator(draw))
        if view.shrink > 1:
            difference = view.draw(frame, 1).int() - view.draw(half, 1).int()
            assert difference.abs().max() <= 6


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
    """Scale, limit, add 0.5, truncate: 1080x1920 to 720x1280 to 562.5x1000 to 563x1000."""
    assert shortest_edge_size(size, short_edge, max_size) == expected
    assert (
        resize_shortest_edge(torch.zeros((3, *size), dtype=torch.uint8), short_edge, max_size).shape[1:]
        == expected
    )


def test_shrinking_is_antialiased():
    """A fine checkerboard becomes a uniform grey, not black or white."""
    frame = (
        (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).mul(255).to(torch.uint8).expand(3, 64, 64)
    )
    small = resize_shortest_edge(frame, 16, 100)
    assert (small.int() - 127).abs().max() <= 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipAugmentation(edges=()), "the number of edges=0: expected at least 1"),
        (lambda: ClipAugmentation(edges=(32, -1)), "edges=-1: expected at least 1"),
        (lambda: ClipAugmentation(flip=2), "the probability of a flip=2: expected a number from 0 to 1"),
        (lambda: RandomShortestEdge((32,), 0), "max_size=0: expected at least 1"),
        (lambda: DriftingCrop(20, 10), r"DriftingCrop\.high=10: expected at least 20"),
        (lambda: ZoomCrop(float("nan")), r"ZoomCrop\.probability=nan: expected a number from 0 to 1"),
        (lambda: Turn(-1.0), r"Turn\.degrees=-1\.0: expected a number from 0 to 360"),
        (lambda: Turn(centre=(0, 2)), r"Turn\.centre=2: expected a number from 0 to 1"),
        (
            lambda: LargeScaleJitter(low=2.0, high=1.0),
            r"LargeScaleJitter\.high=1\.0: expected a number from 2",
        ),
        (lambda: ColourJitter(contrast=-0.1), r"ColourJitter\.contrast=-0\.1: expected a number from 0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
