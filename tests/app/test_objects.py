"""Streams that start from given objects: their files, their ids, and what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from local2global.app.objects import read_objects
from local2global.app.predict import L2G
from local2global.errors import UserError
from local2global.modeling.variants import ImageTracker

SIZE = (6, 8)


def ids_image():
    """Object 3 in a corner, object 7 below it."""
    ids = np.zeros(SIZE, np.uint8)
    ids[:2, :3], ids[3:, 5:] = 3, 7
    return ids


def expected():
    ids = torch.from_numpy(ids_image())
    return torch.stack([ids == 3, ids == 7])


def save(path, mode):
    ids = ids_image()
    if mode == "P":
        image = Image.fromarray(ids, "L").convert("P")
        image.putdata(ids.ravel().tolist())
    elif mode == "I;16":
        image = Image.fromarray(ids.astype(np.uint16) * 1000)
    elif mode == "RGB":
        colours = {0: (0, 0, 0), 3: (0, 0, 255), 7: (255, 0, 0)}
        image = Image.fromarray(np.array([[colours[i] for i in row] for row in ids.tolist()], np.uint8))
    else:
        image = Image.fromarray(ids)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "RGB"])
def test_every_value_of_an_image_is_an_object(tmp_path, mode):
    assert torch.equal(read_objects(save(tmp_path / "first.png", mode), SIZE), expected())


def annotations(masks):
    rles = coco_mask.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0), dtype=np.uint8))
    tracks = [{"size": r["size"], "counts": r["counts"].decode()} for r in rles]
    entries = [
        {
            "id": i,
            "video_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "areas": [1, 1],
            "segmentations": [track, None],
        }
        for i, track in enumerate(tracks, 1)
    ]
    entries.append({**entries[0], "id": 9, "segmentations": [None, tracks[0]]})  # appears later
    video = {"id": 1, "height": SIZE[0], "width": SIZE[1], "length": 2}
    return {"videos": [video], "categories": [{"id": 1, "name": "a"}], "annotations": entries}


def test_annotations_give_the_masks_of_the_first_frame(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations(expected())))
    assert torch.equal(read_objects(path, SIZE), expected())


def photo(path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: save(p, "L"), "8x6 pixels, the video has 9x6"),
        (lambda p: Image.new("L", (9, 6)).save(p), "no object on the first frame"),
        (
            lambda p: Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(
                p
            ),
            "colours",
        ),
        (lambda p: p.write_bytes(b"no image"), "not a readable image"),
        (lambda p: None, "no such file"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, make, message):
    make(tmp_path / "first.png")
    with pytest.raises(UserError, match=message):
        read_objects(tmp_path / "first.png", (6, 9))


@pytest.fixture
def model(tiny):
    model = tiny().eval()
    model.test_size = (64, 96)
    return L2G(model, "cpu")


@pytest.mark.parametrize("tracker", [None, ImageTracker(threshold=0.99)])
def test_given_objects_have_the_first_ids_and_the_others_are_reported_on_request(model, make_clip, tracker):
    model._module.tracker = tracker or model._module.tracker
    clip = make_clip(visible=((1,) * 4, (1,) * 4))
    masks = clip.targets.masks[:, 0]
    alone = list(model.stream(clip.frames, threshold=0.0, objects=masks, only_objects=True))
    assert alone[0].ids.tolist() == [0, 1]
    assert torch.equal(alone[0].masks, masks)
    assert all(set(result.ids.tolist()) <= {0, 1} for result in alone)
    together = list(model.stream(clip.frames, threshold=0.0, objects=masks))
    for few, many in zip(alone, together, strict=True):
        assert torch.equal(few.masks, many.masks[many.ids < 2])
    assert any(len(many.ids) > len(few.ids) for few, many in zip(alone, together, strict=True))


def test_given_objects_are_reported_with_any_score(model, make_clip):
    clip = make_clip()
    masks = clip.targets.masks[:, 0]
    first = next(iter(model.stream(clip.frames, threshold=1.0, objects=masks)))
    assert first.ids.tolist() == [0, 1]


def test_boxes_are_segmented(model, make_clip):
    """A box is not reported as a rectangle; the slots of the objects are the first ones."""
    clip = make_clip()
    first = next(iter(model.stream(clip.frames, objects=clip.targets.boxes[:, 0], only_objects=True)))
    assert set(first.ids.tolist()) <= {0, 1}


def test_a_stream_from_objects_continues_from_its_state(model, make_clip):
    clip = make_clip(visible=((1,) * 4, (1,) * 4))
    options = {"objects": clip.targets.masks[:, 0], "threshold": 0.0}
    stream = model.start((64, 96), **options)
    whole = [stream.step(frame) for frame in clip.frames]
    first = model.start((64, 96), **options)
    for frame in clip.frames[:2]:
        first.step(frame)
    second = model.start((64, 96), **options)
    second.load_state(first.state())
    for frame, result in zip(clip.frames[2:], whole[2:], strict=True):
        assert torch.equal(second.step(frame).masks, result.masks)


@pytest.mark.parametrize(
    "objects", [torch.zeros(2, 3, 4, dtype=torch.bool), torch.zeros(2, 5), torch.full((2, 4), 7.0)]
)
def test_objects_of_another_form_are_refused(model, objects):
    with pytest.raises(UserError, match=r"expected masks \(M, 64, 96\) bool or boxes"):
        model.start((64, 96), objects=objects)
