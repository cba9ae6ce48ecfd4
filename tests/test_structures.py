"""The nouns refuse what cannot be, and cut features the way clips are laid out."""

import dataclasses

import pytest
import torch

from local2global import structures
from local2global.structures import (
    Clip,
    ClipTargets,
    FrameFeatures,
    Queries,
)


def truth(count=2, length=3, **changes):
    fields = {
        "labels": torch.zeros(count, dtype=torch.int64),
        "ids": torch.arange(count),
        "masks": torch.zeros(count, length, 4, 6, dtype=torch.bool),
        "boxes": torch.zeros(count, length, 4),
        "visible": torch.zeros(count, length, dtype=torch.bool),
    }
    return ClipTargets(**(fields | changes))


def features(batch=4, **changes):
    fields = {
        "memory": torch.arange(batch).float().view(-1, 1, 1).expand(batch, 10, 2),
        "shapes": ((1, 2), (2, 4)),
        "padding": torch.zeros(batch, 10, dtype=torch.bool),
        "mask_features": torch.arange(batch).float().view(-1, 1, 1, 1).expand(batch, 2, 4, 8),
        "extent": torch.tensor([[8.0, 4.0]]).repeat(batch, 1),
        "valid_ratios": torch.ones(batch, 2, 2),
    }
    return FrameFeatures(**(fields | changes))


@pytest.mark.parametrize(
    "name",
    [n for n, c in vars(structures).items() if dataclasses.is_dataclass(c)],
)
def test_every_noun_is_frozen(name):
    assert getattr(structures, name).__dataclass_params__.frozen


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", torch.zeros(3, dtype=torch.int64)),
        ("ids", torch.zeros(1, dtype=torch.int64)),
        ("masks", torch.zeros(2, 4, 4, 6, dtype=torch.bool)),
        ("masks", torch.zeros(2, 3, 24, dtype=torch.bool)),
        ("masks", torch.zeros(2, 3, 4, 6)),
        ("boxes", torch.zeros(2, 3, 5)),
        ("boxes", torch.zeros(2, 2, 4)),
    ],
)
def test_truth_of_the_wrong_shape_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        truth(**{field: value})


def test_truth_may_be_empty():
    assert len(truth(count=0)) == 0


def test_truth_moves_whole():
    moved = truth().to("meta")
    assert {getattr(moved, f.name).device.type for f in dataclasses.fields(moved)} == {"meta"}


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(3, 3, 4, 6), torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(3, 1, 4, 6).byte()],
)
def test_frames_are_uint8_rgb(frames):
    with pytest.raises(ValueError, match="frames"):
        Clip(frames, (4, 6))


def test_a_clip_and_its_truth_are_equally_long():
    with pytest.raises(ValueError, match="3 frames for a clip of 2"):
        Clip(torch.zeros(2, 3, 4, 6, dtype=torch.uint8), (4, 6), targets=truth())


def test_frames_may_be_decoded_one_by_one():
    class Lazy:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            raise AssertionError("decoded before it was asked for")

    assert len(Clip(Lazy(), (4, 6))) == 5


def test_memory_holds_the_tokens_of_all_levels():
    with pytest.raises(ValueError, match="9 tokens for levels of 10"):
        features(memory=torch.zeros(4, 9, 2))


def test_boxes_and_queries_are_as_many():
    with pytest.raises(ValueError, match="boxes"):
        Queries(torch.zeros(2, 5, 8), torch.zeros(2, 4, 4))


def test_the_clips_of_a_batch_lie_one_after_the_other():
    """Frames of clips a and b: a0 a1 b0 b1; step 0 is a0 b0, step 1 is a1 b1."""
    first, second = features().split(2)
    assert first.memory[:, 0, 0].tolist() == [0, 2]
    assert second.memory[:, 0, 0].tolist() == [1, 3]
    assert second.mask_features[:, 0, 0, 0].tolist() == [1, 3]
    assert first.shapes == ((1, 2), (2, 4))
    assert first.extent.shape == (2, 2)
    assert first.valid_ratios.shape == (2, 2, 2)


def test_mask_pixels_that_the_frame_touches_are_not_padding():
    """5.5 by 2 mask pixels of the frame: column 5 is half covered, columns 6, 7 and rows 2, 3 are padding."""
    padding = structures.padded_pixels(torch.tensor([[5.5, 2.0]]), 4, 8)[0]
    expected = torch.ones(4, 8, dtype=torch.bool)
    expected[:2, :6] = False
    assert torch.equal(padding, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: truth(visible=torch.zeros(2, 3)),
        lambda: features(padding=torch.zeros(4, 9, dtype=torch.bool)),
        lambda: features(extent=torch.zeros(3, 2)),
        lambda: Clip(torch.zeros(3, 3, 4, 6, dtype=torch.uint8), (4, 6), frame_ids=(1, 2)),
        lambda: structures.Positions(torch.zeros(1, 5, 8), torch.zeros(1, 4, 4)),
        lambda: structures.Proposals(torch.zeros(1, 5, 8), torch.zeros(1, 4, 4), None),
    ],
    ids=["visible", "padding", "extent", "frame_ids", "positions", "proposals"],
)
def test_what_the_attributes_say_is_checked(wrong):
    """Section 4: validated at construction."""
    with pytest.raises(ValueError, match=r"\w"):
        wrong()
