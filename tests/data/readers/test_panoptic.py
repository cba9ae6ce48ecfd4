"""Generated stuff regions and their panoptic ground truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from local2global.data.generated.landscape import MATERIALS, Border, Landscape
from local2global.data.generated.shapes import PRESETS, load_shapes
from local2global.data.readers.panoptic import PanopticRecords

SIZE = (48, 80)


@pytest.fixture(scope="module")
def videos():
    return load_shapes("panoptic", 3, seed=5, length=3, size=SIZE)


def test_things_come_first_in_the_class_list():
    classes = PRESETS["panoptic"].classes
    assert [c["isthing"] for c in classes] == [1, 1, 1, 0, 0, 0, 0]
    assert [c["name"] for c in classes[3:]] == list(MATERIALS)
    assert len({c["id"] for c in classes}) == len(classes)


def test_every_pixel_belongs_to_exactly_one_segment(videos):
    for video in videos.videos:
        for t in range(video.length):
            masks = video.masks(t)
            assert (masks.sum(0) == 1).all()
            assert np.array_equal(video.present(t), masks.flatten(1).any(1).numpy())


def test_rows_are_things_then_stuff_of_different_classes(videos):
    classes = videos.classes
    for video in videos.videos:
        kinds = [classes[label]["isthing"] for label in video.labels.tolist()]
        assert kinds == sorted(kinds, reverse=True)
        stuff = [label for label in video.labels.tolist() if not classes[label]["isthing"]]
        assert len(stuff) == len(set(stuff)) in (2, 3)


def test_ids_are_unique_in_the_dataset(videos):
    ids = torch.cat([video.ids for video in videos.videos])
    assert len(ids.unique()) == len(ids)
    assert int(ids.min()) > 0


def test_borders_move_and_frames_do_not_depend_on_the_order_of_access(videos):
    video = videos.videos[0]
    last, first = video.masks(2), video.masks(0)
    assert not torch.equal(first, last)
    again = load_shapes("panoptic", 3, seed=5, length=3, size=SIZE).videos[0]
    assert torch.equal(again.masks(0), first)
    assert torch.equal(again.frame(2), video.frame(2))


def test_a_later_region_covers_earlier_ones():
    """Two flat borders at y = 2 and y = 1 of three rows: the second region covers the first."""
    flat = [Border(level, 0, 0, 10, 0, 30, 0) for level in (2.0, 1.0)]
    draw = np.random.default_rng(0)
    textures = tuple(MATERIALS[name].draw(draw, (3, 4)) for name in ("sky", "water", "sand"))
    regions = Landscape((0, 1, 3), textures, tuple(flat)).regions(0, (3, 4))
    assert regions[:, :, 0].tolist() == [[True, False, False], [False, False, False], [False, True, True]]


def test_a_background_without_stuff_adds_no_rows():
    video = load_shapes("demo", 1).videos[0]
    assert len(video.labels) == len(video.ids) == len(video.masks(0)) == len(video.scene.bodies)


def test_the_ground_truth_agrees_with_the_maps(videos):
    truth = PanopticRecords(videos)
    content = truth.content()
    assert [c["id"] for c in content["categories"]] == [c["id"] for c in videos.classes]
    for video, entry in zip(videos.videos, content["annotations"], strict=True):
        assert entry["video_id"] == truth.names[video.id] == video.name
        frames = [frame["image_id"] for frame in entry["annotations"]]
        for ids, frame in zip(truth.read(video.name, frames), entry["annotations"], strict=True):
            found, areas = np.unique(ids, return_counts=True)
            listed = {s["id"]: s["area"] for s in frame["segments_info"]}
            assert listed == dict(zip(found.tolist(), areas.tolist(), strict=True))
        things = {c["id"]: c["isthing"] for c in videos.classes}
        kinds = [things[s["category_id"]] for s in entry["annotations"][0]["segments_info"]]
        assert kinds == sorted(kinds), "stuff comes first: STQ treats a thing that is listed first as a crowd"
