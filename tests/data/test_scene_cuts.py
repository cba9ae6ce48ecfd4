"""Scene cuts: which frames show the other video, and the instances of a clip of two videos."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from local2global.data.scene_cuts import SceneCuts, can_cut, cut_to
from local2global.errors import UserError
from local2global.structures import Clip, ClipTargets


def clip(value, *, visible, labels=(0,), ids=(7,), key=(0, 0, 0)):
    """Frames of one grey value plus their index; instance m fills the frames where `visible[m]` is 1."""
    seen = torch.tensor(visible, dtype=torch.bool)
    length = seen.shape[1]
    masks = seen[..., None, None].expand(-1, -1, 2, 3).clone()
    boxes = torch.where(seen[..., None], torch.full((4,), 0.5), torch.zeros(4))
    return Clip(
        frames=torch.stack([torch.full((3, 2, 3), value + t, dtype=torch.uint8) for t in range(length)]),
        size=(2, 3),
        video_id=value,
        frame_ids=tuple(range(length)),
        targets=ClipTargets(torch.tensor(labels), torch.tensor(ids), masks, boxes, seen),
        key=key,
    )


def patterns(cuts, length, count=400):
    drawn = [cuts.draw(length, torch.Generator().manual_seed(i)) for i in range(count)]
    return Counter("".join("b" if other else "a" for other in frames) for frames in drawn)


def test_a_cut_ends_the_clip_and_an_interruption_returns():
    assert patterns(SceneCuts(end=1, interrupt=0), 3).keys() == {"abb", "aab"}
    assert patterns(SceneCuts(end=0, interrupt=1), 4).keys() == {"abaa", "abba", "aaba"}


def test_clips_are_cut_as_often_as_asked():
    seen = patterns(SceneCuts(end=0.25, interrupt=0.25), 3)
    assert seen["aaa"] == pytest.approx(200, abs=40)
    assert seen["aba"] == pytest.approx(100, abs=35)
    assert seen["abb"] + seen["aab"] == pytest.approx(100, abs=35)


@pytest.mark.parametrize("length", [1, 2])
def test_short_clips_have_no_room_for_an_interruption(length):
    assert patterns(SceneCuts(end=0, interrupt=1), length).keys() == {"a" * length}


def test_a_video_is_not_cut_to_itself_and_frames_have_one_size():
    first, same = clip(10, visible=[[1, 1]]), clip(10, visible=[[1, 1]])
    assert not can_cut(first, same)
    second = clip(50, visible=[[1, 1]])
    assert can_cut(first, second)
    assert not can_cut(first, dataclasses.replace(second, frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8)))


def test_a_returning_video_continues_where_it_stopped():
    first, second = clip(10, visible=[[1, 1, 1]]), clip(50, visible=[[1, 0, 1]], labels=(2,))
    joined = cut_to(first, second, [False, True, False])
    assert [int(frame.flatten()[0]) for frame in joined.frames] == [10, 50, 11]
    assert joined.targets.labels.tolist() == [0, 2]
    assert joined.targets.visible.int().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert torch.equal(joined.targets.masks.flatten(2).any(-1), joined.targets.visible)
    assert (joined.video_id, joined.key) == (first.video_id, first.key)


def test_instances_that_are_not_shown_are_dropped_and_ids_stay_unique():
    first = clip(10, visible=[[1, 1, 1], [0, 0, 1]], labels=(0, 1), ids=(7, 8))
    second = clip(50, visible=[[1, 1, 1]], labels=(2,), ids=(7,))
    joined = cut_to(first, second, [False, False, True])
    assert joined.targets.labels.tolist() == [0, 2]
    assert len(set(joined.targets.ids.tolist())) == 2


def test_the_clips_themselves_are_not_changed():
    first, second = clip(10, visible=[[1, 1]]), clip(50, visible=[[1, 1]])
    frames, masks = first.frames.clone(), first.targets.masks.clone()
    cut_to(first, second, [False, True])
    assert torch.equal(first.frames, frames)
    assert torch.equal(first.targets.masks, masks)


def test_clips_of_different_length_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        cut_to(clip(10, visible=[[1, 1]]), clip(50, visible=[[1, 1, 1]]), [False, True])


def test_fractions_out_of_range_are_refused_by_name():
    with pytest.raises(UserError, match=r"SceneCuts\.end=-0\.5: expected a number from 0 to 1"):
        SceneCuts(end=-0.5, interrupt=0)
    with pytest.raises(UserError, match=r"SceneCuts\.end \+ interrupt=1\.1: expected a number from 0 to 1"):
        SceneCuts(end=0.6, interrupt=0.5)
