"""Frames in: numpy, Pillow and OpenCV.  Results out: numpy and supervision."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fake_stream import Fake
from local2global.app.predict import L2G
from local2global.app.source import to_frame
from local2global.errors import UserError
from local2global.structures import FrameResult

#: (3, 40, 60): red rises with the columns, green with the rows, blue is 7.
FRAME = torch.stack(
    [torch.arange(60).expand(40, 60), torch.arange(40)[:, None].expand(40, 60), torch.full((40, 60), 7)]
).to(torch.uint8)
ARRAY = FRAME.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("image", "bgr"),
    [
        (FRAME, False),
        (FRAME.flip(0), True),
        (ARRAY, False),
        (ARRAY[..., ::-1], True),
        (np.ascontiguousarray(ARRAY[..., ::-1]), True),
        (Image.fromarray(ARRAY), False),
        (Image.fromarray(ARRAY), True),
        (Image.fromarray(np.dstack([ARRAY, np.full((40, 60), 9, np.uint8)])), False),
    ],
)
def test_every_form_of_a_frame_has_the_same_pixels(image, bgr):
    """A Pillow image is RGB whatever `bgr` says; its alpha channel is dropped."""
    assert torch.equal(to_frame(image, bgr), FRAME)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (ARRAY.astype(np.float32), r"\(40, 60, 3\) float32: expected \(H, W, 3\) uint8"),
        (ARRAY[..., 0], r"\(40, 60\) uint8: expected \(H, W, 3\) uint8"),
        (FRAME.numpy(), r"\(3, 40, 60\) uint8: expected \(H, W, 3\) uint8"),
        (FRAME.float(), r"\(3, 40, 60\) torch.float32: expected a \(3, H, W\) uint8 tensor"),
        (FRAME.permute(1, 2, 0), r"\(40, 60, 3\) torch.uint8: expected a \(3, H, W\)"),
        (None, "a frame of NoneType: expected"),
    ],
)
def test_other_forms_are_refused(image, problem):
    with pytest.raises(UserError, match=problem):
        list(L2G(Fake(), "cpu").stream([image]))


def test_a_stream_of_arrays_and_images_equals_that_of_tensors():
    def stream(frames, **options) -> list[list[float]]:
        return [[*r.ids.tolist(), *r.scores.tolist()] for r in L2G(Fake(), "cpu").stream(frames, **options)]

    expected = stream([FRAME] * 3)
    assert expected
    assert stream([ARRAY] * 3) == stream([Image.fromarray(ARRAY)] * 3) == expected
    assert stream([ARRAY[..., ::-1]] * 3, bgr=True) == expected
    one = L2G(Fake(), "cpu").start((40, 60))
    assert one.step(ARRAY[..., ::-1], bgr=True).ids.tolist() == [0, 1]


def result() -> FrameResult:
    """Two objects of a frame of 40x60 pixels; the box of the second reaches beyond it."""
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 10:20, 6:18] = True
    boxes = torch.tensor([[0.2, 0.375, 0.2, 0.25], [0.95, 0.5, 0.2, 1.0]])
    scores = torch.tensor([0.9, 0.5])
    return FrameResult(4, torch.tensor([7, 2]), torch.tensor([1, 0]), scores, masks, boxes, ("person", "dog"))


def test_numpy_results_have_boxes_in_pixels():
    arrays = result().to_numpy()
    assert (arrays.index, arrays.ids.tolist(), arrays.labels.tolist()) == (4, [7, 2], [1, 0])
    assert arrays.boxes.round(3).tolist() == [[6, 10, 18, 20], [51, 0, 60, 40]]
    assert (arrays.masks.dtype, arrays.masks.shape, arrays.boxes.dtype) == (np.bool_, (2, 40, 60), np.float32)
    none = torch.zeros(0, dtype=torch.int64)
    empty = FrameResult(0, none, none, torch.zeros(0), torch.zeros(0, 40, 60), torch.zeros(0, 4))
    assert empty.to_numpy().boxes.shape == (0, 4)


def test_supervision_receives_masks_ids_and_names():
    sv = pytest.importorskip("supervision", reason="pip install 'local2global[supervision]'")
    detections = result().to_supervision()
    assert isinstance(detections, sv.Detections)
    assert detections.tracker_id.tolist() == [7, 2]
    assert detections.data["class_name"].tolist() == ["dog", "person"]
    assert detections[detections.tracker_id == 7].area.tolist() == [120]
    drawn = sv.MaskAnnotator().annotate(ARRAY.copy(), detections)
    assert (drawn != ARRAY).any(2)[15, 10]
    stream = L2G(Fake(), "cpu").stream([FRAME] * 2, threshold=1.0)
    assert len(next(stream).to_supervision()) == 0, "a frame without objects"


def test_supervision_receives_results_without_class_names():
    pytest.importorskip("supervision", reason="pip install 'local2global[supervision]'")
    detections = dataclasses.replace(result(), class_names=()).to_supervision()
    assert detections.tracker_id.tolist() == [7, 2]
    assert "class_name" not in detections.data


def test_without_supervision_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"pip install 'local2global\[supervision\]'"):
        result().to_supervision()


def test_a_stream_names_its_classes():
    assert next(L2G(Fake(), "cpu").stream([FRAME])).class_names == ("person", "dog")
