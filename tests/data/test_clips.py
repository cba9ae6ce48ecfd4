"""Training clips: sampled frames, visible instances, and hand-computed boxes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from local2global.data.augment import ClipAugmentation, Identity
from local2global.data.clips import choose_frames, make_clip, make_targets, sample_frames
from local2global.randomness import keyed_generator

KEY = (7, 3, 1)


@dataclass(frozen=True)
class Painted:
    """A video of 4x8 pixels whose frame t has value t; `shown[i]` are the frames in which instance i is visible."""

    shown: tuple[tuple[int, ...], ...]
    length: int
    id: int = 5
    name: str = "painted"
    size: tuple[int, int] = (4, 8)

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self.shown)) + 10

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self.shown)) + 100

    def frame(self, t: int) -> Tensor:
        return torch.full((3, *self.size), t, dtype=torch.uint8)

    def masks(self, t: int) -> Tensor:
        masks = torch.zeros((len(self.shown), *self.size), dtype=torch.bool)
        for row, frames in enumerate(self.shown):
            masks[row, 1:3, row : row + 2] = t in frames
        return masks

    def present(self, t: int) -> np.ndarray:
        return np.array([t in frames for frames in self.shown], dtype=bool)


def draws(length: int, clip_length: int, window: int, times: int = 200) -> list[tuple[int, ...]]:
    return [sample_frames(length, clip_length, window, keyed_generator(i)) for i in range(times)]


def test_frames_are_sorted_distinct_and_near_one_of_them():
    for frames in draws(length=40, clip_length=4, window=6):
        assert list(frames) == sorted(set(frames))
        assert len(frames) == 4
        assert any(max(abs(t - reference) for t in frames) <= 6 for reference in frames)


def test_every_frame_is_drawn_about_equally_often_as_the_only_one():
    drawn = Counter(frames[0] for frames in draws(length=5, clip_length=1, window=6, times=1000))
    assert set(drawn) == set(range(5))
    assert min(drawn.values()) > 150


def test_frames_span_the_whole_window():
    spans = {frames[-1] - frames[0] for frames in draws(length=60, clip_length=2, window=6, times=400)}
    assert spans == {1, 2, 3, 4, 5, 6}


def test_a_video_of_one_frame_is_repeated():
    assert sample_frames(1, 4, 6, keyed_generator(0)) == (0, 0, 0, 0)


def test_a_short_video_uses_every_frame_before_repeating_any():
    for frames in draws(length=3, clip_length=5, window=6, times=30):
        assert set(frames) == {0, 1, 2}
        assert max(Counter(frames).values()) == 2


def test_a_window_of_zero_repeats_the_reference_frame():
    assert {len(set(frames)) for frames in draws(length=9, clip_length=3, window=0, times=10)} == {1}


def test_frames_are_redrawn_until_an_instance_is_visible():
    video = Painted(shown=((17,),), length=30)
    for index in range(20):
        assert 17 in choose_frames(video, 3, 2, (0, 0, index), tries=1000)


def test_an_empty_clip_is_accepted_after_all_tries():
    video = Painted(shown=((),), length=30)
    frames = choose_frames(video, 3, 2, KEY, tries=4)
    assert len(frames) == 3
    assert len(make_clip(video, frames, Identity(), KEY).targets) == 0


def test_frames_are_determined_by_the_key():
    video = Painted(shown=((2,),), length=30)
    assert choose_frames(video, 3, 6, KEY, 5) == choose_frames(video, 3, 6, KEY, 5)
    assert len({choose_frames(video, 3, 6, (0, 0, i), 1) for i in range(20)}) > 10


def test_a_clip_has_the_instances_visible_in_it():
    video = Painted(shown=((0, 1), (9,), (3,)), length=10)
    clip = make_clip(video, (1, 3, 3), Identity(), KEY)
    assert clip.targets.ids.tolist() == [100, 102]
    assert clip.targets.labels.tolist() == [10, 12]
    assert clip.targets.visible.tolist() == [[True, False, False], [False, True, True]]
    assert torch.equal(clip.targets.masks[1, 2], video.masks(3)[2])
    assert clip.frames[:, 0, 0, 0].tolist() == [1, 3, 3]
    assert (clip.size, clip.video_id, clip.frame_ids, clip.key) == ((4, 8), 5, (1, 3, 3), KEY)


def test_a_video_without_instances_gives_an_empty_clip():
    clip = make_clip(
        Painted(shown=(), length=2), (0, 1), ClipAugmentation(edges=(8,), max_size=99, crop=None), KEY
    )
    assert clip.frames.shape == (2, 3, 8, 16)
    assert clip.targets.masks.shape == (0, 2, 8, 16)
    assert clip.targets.boxes.shape == (0, 2, 4)


def test_boxes_include_the_last_pixel_and_are_normalised():
    """Columns 2 to 5 of 8, rows 1 to 1 of 4: centre (4/8, 1.5/4), size (4/8, 1/4)."""
    masks = torch.zeros((1, 2, 4, 8), dtype=torch.bool)
    masks[0, 0, 1, 2:6] = True
    targets = make_targets(torch.tensor([0]), torch.tensor([1]), masks)
    assert targets.boxes.dtype == torch.float32
    assert targets.boxes.tolist() == [[[0.5, 0.375, 0.5, 0.25], [0, 0, 0, 0]]]


def test_boxes_follow_the_augmentation():
    video = Painted(shown=((0,),), length=1)
    for index in range(8):
        key = (0, 0, index)
        clip = make_clip(video, (0,), ClipAugmentation(edges=(8, 16), max_size=99, crop=None), key)
        side = clip.targets.boxes[0, 0, 0].item()
        assert side == pytest.approx(1 / 8) or side == pytest.approx(7 / 8)
        assert clip.targets.boxes[0, 0, 1:].tolist() == pytest.approx([0.5, 0.25, 0.5])


def test_an_instance_outside_the_crop_is_dropped():
    class LeftHalf(Identity):
        def view(self, view, generator):
            return view.cut([(0, 0)], (4, 4))

    video = Painted(shown=((0,), (), (), (), (), (0,)), length=1)
    assert make_clip(video, (0,), LeftHalf(), KEY).targets.ids.tolist() == [100]
