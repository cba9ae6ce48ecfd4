"""Generated videos: ground truth agrees with pixels, frames are independent, presets have their stated difficulty."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from local2global.data.generated.scene import (
    OUTLINES,
    REACH,
    SHUTTER,
    Background,
    Body,
    Look,
    Meeting,
    Orbit,
    Scene,
)
from local2global.data.generated.shapes import CLASSES, PRESETS, Difficulty, load_shapes
from local2global.errors import UserError

SIZE = (48, 80)
RED, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


def still(x, y):
    return Orbit(middle=(x, y), reach=(0.0, 0.0), period=(1.0, 1.0), phase=(0.0, 0.0))


def body(name, x, y, radius, colour=RED, path=None):
    look = Look(np.array([colour, colour], np.float32), np.zeros((2, 3), np.float32), (0.0, 0.0, 0.0), 1.0)
    return Body(list(OUTLINES).index(name), look, radius, path or still(x, y), angle=0.0, spin=0.0, pulse=0.0)


def scene(*bodies):
    background = Background(
        np.array(GREY, np.float32), np.zeros((3, 1), np.float32), np.zeros((1, 3)), (0.0, 0.0), 1.0
    )
    return Scene(bodies, background, noise=0.0, blur=0.0)


def gaps(seen):
    """(start, length) of every run of False between two Trues."""
    runs, start = [], 0
    for value, run in itertools.groupby(seen):
        length = len(list(run))
        runs.append((bool(value), start, length))
        start += length
    return [(start, length) for value, start, length in runs[1:-1] if not value]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("disc", np.pi * 0.92**2),
        ("square", 1.64**2),
        ("triangle", 3 * np.sqrt(3) * (REACH / 2) ** 2),
        ("star", 5 * 0.5 * REACH * np.sin(np.pi / 5)),
        ("cross", 4 * (2 * 1.08 * 0.34 - 0.34**2)),
        ("ring", np.pi * (1.02**2 - 0.48**2)),
    ],
)
def test_an_outline_holds_the_area_of_its_figure(name, share):
    turned = replace(body(name, 100, 100, 80), angle=0.3)
    mask = scene(turned).cover(0, (200, 200)).masks[0]
    assert mask.sum() == pytest.approx(share * 80**2, rel=0.01)


@pytest.mark.parametrize("name", list(OUTLINES))
def test_no_outline_goes_beyond_its_reach(name):
    rows, columns = np.nonzero(scene(body(name, 100, 100, 80)).cover(0, (200, 200)).masks[0])
    assert np.hypot(rows + 0.5 - 100, columns + 0.5 - 100).max() <= REACH * 80


def test_a_square_on_the_grid_paints_its_pixels_and_no_other():
    """The half side is 0.82 * 10 = 8.2 pixels from (20, 20): pixels 12 to 27 are covered, their neighbours by 0.2."""
    shown = scene(body("square", 20, 20, 10))
    mask, image = shown.cover(0, (40, 40)).masks[0], shown.paint(0, (40, 40))
    assert mask.sum() == 16 * 16
    assert mask[12:28, 12:28].all()
    np.testing.assert_allclose(image[:, 20, 20], RED, atol=1e-6)
    np.testing.assert_allclose(image[:, 20, 5], GREY, atol=1e-6)
    np.testing.assert_allclose(image[:, 20, 28], [0.6, 0.4, 0.4], atol=1e-4)


def test_the_first_body_is_in_front_and_occludes_the_others():
    shown = scene(body("square", 20, 20, 10, RED), body("square", 28, 20, 10, BLUE))
    near, far = shown.cover(0, (40, 60)).masks
    assert (near.sum(), far.sum()) == (256, 8 * 16)
    assert not (near & far).any()
    image = shown.paint(0, (40, 60))
    np.testing.assert_allclose(image[:, 20, 24], RED, atol=1e-6)
    np.testing.assert_allclose(image[:, 20, 32], BLUE, atol=1e-6)


def test_an_occluded_body_is_inside_the_frame_and_one_outside_is_not():
    shown = scene(body("disc", 20, 20, 15), body("star", 20, 20, 5), body("star", 90, 20, 5))
    cover = shown.cover(0, (40, 60))
    assert cover.masks.any((1, 2)).tolist() == [True, False, False]
    assert cover.inside.tolist() == [True, True, False]


def test_motion_blur_affects_edges_only():
    """At 20 pixels per frame an edge is blurred over 20 * SHUTTER pixels, plus one for antialiasing."""
    moving = Orbit(middle=(40.0, 20.0), reach=(200.0, 0.0), period=(20 * np.pi, 1.0), phase=(0.0, 0.0))
    image = scene(body("square", 0, 0, 15, path=moving)).paint(0, (40, 80))
    blended = (image[0, 20] > 0.51) & (image[0, 20] < 0.99)
    assert blended.sum() / 2 == pytest.approx(20 * SHUTTER, abs=1.5)
    np.testing.assert_allclose(image[:, 20, 40], RED, atol=1e-6)


def test_a_meeting_follows_the_host_during_its_stay_and_its_own_path_otherwise():
    meeting = Meeting(own=still(0, 0), host=still(10, 20), at=30, stay=6, ramp=8, cycle=50)
    assert [meeting(t) for t in (27, 30, 33, 80)] == [(10, 20)] * 4
    assert [meeting(t) for t in (19, 41)] == [(0, 0)] * 2
    assert meeting(23) == (5, 10)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_frames_do_not_depend_on_the_order_of_access(preset):
    first, second = (load_shapes(preset, 3, seed=4, size=SIZE).videos[2] for _ in range(2))
    order = [7, 0, 3, 11]
    forward = {t: (first.frame(t), first.masks(t)) for t in sorted(order)}
    for t in order:
        assert torch.equal(second.masks(t), forward[t][1])
        assert torch.equal(second.frame(t), forward[t][0])


def test_a_video_does_not_depend_on_dataset_size_video_length_or_pickling():
    short, long = load_shapes("demo", 1, seed=2), load_shapes("demo", 1000, seed=2, length=500)
    for other in (long.videos[0], pickle.loads(pickle.dumps(short)).videos[0]):
        assert torch.equal(short.videos[0].frame(5), other.frame(5))


def test_different_ids_and_seeds_give_different_videos():
    frames = [v.frame(0) for seed in (0, 1) for v in load_shapes("demo", 2, seed).videos]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(frames, 2))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_records_have_the_documented_shapes_and_present_agrees_with_the_masks(preset):
    dataset = load_shapes(preset, 4, seed=1, size=SIZE)
    for video in dataset.videos:
        count = len(video.labels)
        assert (video.frame(0).shape, video.frame(0).dtype) == ((3, *SIZE), torch.uint8)
        assert video.labels.dtype == video.ids.dtype == torch.int64
        for t in range(0, video.length, 3):
            masks = video.masks(t)
            assert (masks.shape, masks.dtype) == ((count, *SIZE), torch.bool)
            assert masks.sum(0).max() <= 1
            assert video.present(t).tolist() == masks.flatten(1).any(1).tolist()
            assert not (video.present(t) & ~video.inside(t)).any()


def test_returned_masks_are_copies():
    video = load_shapes("demo", 1).videos[0]
    expected = video.masks(0).clone()
    video.masks(0).fill_(True)
    assert torch.equal(video.masks(0), expected)


def test_ids_are_unique_and_positive_over_the_dataset():
    dataset = load_shapes("hard", 30)
    ids = torch.cat([v.ids for v in dataset.videos]).tolist()
    assert (len(set(ids)), min(ids)) == (len(ids), 1)
    assert [v.id for v in dataset.videos] == list(range(1, 31))


def test_a_dataset_of_a_million_videos_is_lazy():
    dataset = load_shapes("demo", 1_000_000)
    assert (len(dataset), dataset.videos[-1].id) == (1_000_000, 1_000_000)
    assert [v.id for v in dataset.videos[3:5]] == [4, 5]


def test_the_ground_truth_agrees_with_the_masks():
    dataset = load_shapes("demo", 4, seed=3, size=SIZE)
    truth = dataset.truth()
    assert truth is dataset.truth()
    assert truth["categories"] == dataset.classes
    assert [v["length"] for v in truth["videos"]] == [v.length for v in dataset.videos]
    for annotation in truth["annotations"]:
        video = dataset.videos[annotation["video_id"] - 1]
        row = video.ids.tolist().index(annotation["id"])
        assert annotation["category_id"] == dataset.classes[int(video.labels[row])]["id"]
        assert any(annotation["segmentations"])
        for t, (found, area) in enumerate(zip(annotation["segmentations"], annotation["areas"], strict=True)):
            mask = video.masks(t)[row].numpy()
            shown = np.zeros(SIZE, bool) if found is None else rle.decode(found).astype(bool)
            assert (shown == mask).all()
            assert area == (int(mask.sum()) or None)


def test_every_hard_video_has_a_full_occlusion_of_three_frames():
    for video in load_shapes("hard", 12).videos:
        assert video.length >= 60
        assert 3 <= len(video.labels) <= 6
        seen = np.stack([video.present(t) for t in range(video.length)], 1)
        inside = np.stack([video.inside(t) for t in range(video.length)], 1)
        occlusions = [
            (start, length)
            for row in range(len(seen))
            for start, length in gaps(seen[row])
            if length >= 3 and inside[row, start : start + length].all()
        ]
        assert occlusions, video.name


@pytest.mark.parametrize("preset", ["hard", "demo"])
def test_unnamed_presets_have_one_class_and_the_same_videos(preset):
    named, unnamed = (load_shapes(name, 4) for name in (preset, f"{preset}_unnamed"))
    assert unnamed.classes == [{"id": 1, "name": "object"}]
    assert not any(video.labels.any() for video in unnamed.videos)
    assert any(video.labels.any() for video in named.videos)
    assert torch.equal(named.videos[1].frame(9), unnamed.videos[1].frame(9))
    assert torch.equal(named.videos[1].masks(9), unnamed.videos[1].masks(9))


def test_every_hard_video_has_identical_looking_objects():
    for video in load_shapes("hard", 12).videos:
        looks = [(b.label, b.radius, id(b.look)) for b in video.scene.bodies]
        assert max(looks.count(look) for look in looks) >= 2, video.name


def test_no_demo_video_has_identical_looking_objects():
    for video in load_shapes("demo_unnamed", 12).videos:
        colours = {tuple(body.look.colours.flatten().tolist()) for body in video.scene.bodies}
        assert len(colours) == len(video.scene.bodies), video.name


def test_the_hard_preset_is_the_published_benchmark():
    first = load_shapes("hard", 1).videos[0]
    assert first.length == 71
    assert first.labels.tolist() == [1, 0, 0, 1, 1]
    assert first.masks(30).flatten(1).sum(1).tolist() == pytest.approx([800, 4953, 361, 0, 330], abs=3)


def test_demo_objects_are_large_and_contrast_with_the_background():
    for video in load_shapes("demo", 30, seed=5).videos:
        frame, masks = video.frame(6).float() / 255, video.masks(6)
        behind = frame[:, ~masks.any(0)].mean(1)
        for mask in masks:
            if mask.sum() > 400:
                pixels = frame[:, mask] - behind[:, None]
                assert pixels.norm(dim=0).mean() > 0.25, video.name
        radii = [b.radius / 96 for b in video.scene.bodies]
        assert 0.2 <= min(radii) <= max(radii) <= 0.34


def test_colour_is_independent_of_the_class():
    """The mean colours of the classes over 600 objects agree within four standard errors."""
    bodies = [b for v in load_shapes(Difficulty(), 300, seed=6).videos for b in v.scene.bodies]
    colours = np.stack([b.look.colours[0] for b in bodies])
    labels = np.array([b.label for b in bodies])
    assert set(labels) == set(range(len(CLASSES)))
    for label in range(len(CLASSES)):
        chosen = colours[labels == label]
        error = 4 * colours.std(0) / np.sqrt(len(chosen))
        assert (np.abs(chosen.mean(0) - colours.mean(0)) < error).all(), CLASSES[label]


def test_a_preset_of_fewer_outlines_has_fewer_classes():
    """The demo draws discs, triangles and crosses: classes 1, 3 and 5, at positions 0, 1 and 2."""
    dataset = load_shapes("demo", 30, seed=6)
    assert [(c["id"], c["name"]) for c in dataset.classes] == [(1, "disc"), (3, "triangle"), (5, "cross")]
    for video in dataset.videos:
        drawn = [list(OUTLINES)[body.label] for body in video.scene.bodies]
        assert [dataset.classes[int(k)]["name"] for k in video.labels] == drawn


def test_a_long_video_shows_objects_to_its_end():
    video = load_shapes("hard", 1, seed=7, length=3000, size=SIZE).videos[0]
    assert max(video.present(t).sum() for t in range(2900, 3000, 5)) >= 2


@pytest.mark.parametrize("t", [-1, 12])
def test_a_frame_outside_the_video_is_an_error(t):
    video = load_shapes("demo", 1, length=12).videos[0]
    for ask in (video.frame, video.masks, video.present):
        with pytest.raises(IndexError, match=f"frames 0 to 11, not {t}"):
            ask(t)


def test_an_unknown_preset_is_refused_with_a_list_of_presets():
    with pytest.raises(
        UserError,
        match=r'no preset "easy"\. Choose one of: demo, hard, crossing, hard_unnamed, demo_unnamed, panoptic',
    ):
        load_shapes("easy", 1)


@pytest.mark.parametrize("wrong", [{"num_videos": -1}, {"length": 0}, {"length": 1 << 40}, {"size": (8, 80)}])
def test_invalid_numbers_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=.*: expected a number from"):
        load_shapes("demo", **{"num_videos": 1, **wrong})


def test_a_custom_difficulty_is_used():
    crowd = replace(PRESETS["demo"], objects=(5, 5), length=(3, 3), size=SIZE)
    video = load_shapes(crowd, 1).videos[0]
    assert (len(video.labels), video.length, video.size) == (5, 3, SIZE)
