"""Loaders: clips do not depend on the number of processes, the number of workers or a resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from local2global.data.augment import ClipAugmentation, DriftingCrop, Identity, RandomShortestEdge, ZoomCrop
from local2global.data.datasets import VideoDataset
from local2global.data.holdout import holdout
from local2global.data.loader import Curriculum, LazyFrames, Mixture, build_test_loader, build_train_loader
from local2global.data.scene_cuts import SceneCuts
from local2global.errors import UserError
from local2global.structures import Clip

CLASSES = [{"id": 1, "name": "thing"}]
AUGMENT = ClipAugmentation((12, 16), 40, ZoomCrop(0.5, RandomShortestEdge((20,), 60), DriftingCrop(10, 18)))


@dataclass(frozen=True)
class Noise:
    """A video of 10x14 noise with one instance; a `broken` one cannot be read."""

    id: int
    length: int = 9
    broken: bool = False
    name: str = "noise"
    size: tuple[int, int] = (10, 14)

    @property
    def labels(self) -> Tensor:
        return torch.tensor([0])

    @property
    def ids(self) -> Tensor:
        return torch.tensor([self.id])

    def frame(self, t: int) -> Tensor:
        if self.broken:
            raise UserError(f"{self.name}/{t}.jpg: not a readable image.")
        generator = torch.Generator().manual_seed(1000 * self.id + t)
        return torch.randint(0, 256, (3, *self.size), generator=generator).to(torch.uint8)

    def masks(self, t: int) -> Tensor:
        return self.frame(t)[:1] > 100

    def present(self, t: int) -> np.ndarray:
        return np.array([True])


def resized_to(edge: int) -> ClipAugmentation:
    return ClipAugmentation(edges=(edge,), max_size=99, crop=None)


def videos(count: int, first: int = 1) -> VideoDataset:
    return VideoDataset([Noise(first + i) for i in range(count)], CLASSES)


def same(one: Clip, other: Clip) -> bool:
    return (
        (one.key, one.video_id, one.frame_ids) == (other.key, other.video_id, other.frame_ids)
        and torch.equal(one.frames, other.frames)
        and torch.equal(one.targets.masks, other.targets.masks)
        and torch.equal(one.targets.boxes, other.targets.boxes)
    )


def batches(number: int, start: int = 0, **options) -> list[list[Clip]]:
    defaults = {"clip_length": 3, "augment": AUGMENT, "total_batch_size": 4, "num_workers": 0, "seed": 5}
    loader = build_train_loader(options.pop("dataset", videos(7)), **{**defaults, **options})
    loader.seek(start)
    return list(islice(iter(loader), number))


def assert_same(one: list[list[Clip]], other: list[list[Clip]]) -> None:
    assert [len(batch) for batch in one] == [len(batch) for batch in other]
    assert all(same(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_clip_keys_are_seed_iteration_and_index():
    keys = [[clip.key for clip in batch] for batch in batches(2)]
    assert keys == [[(5, iteration, index) for index in range(4)] for iteration in range(2)]


def test_two_processes_load_the_clips_of_one():
    alone = batches(3)
    ranks = [batches(3, rank=rank, world_size=2) for rank in range(2)]
    assert_same(alone, [a + b for a, b in zip(*ranks, strict=True)])


def test_a_resumed_loader_continues_the_uninterrupted_stream():
    assert_same(batches(2, start=5), batches(7)[5:])


def test_clips_do_not_depend_on_workers():
    assert_same(batches(3, num_workers=2), batches(3))


def test_another_seed_gives_other_clips():
    pairs = zip(batches(1)[0], batches(1, seed=6)[0], strict=True)
    assert not any(torch.equal(a.frames, b.frames) for a, b in pairs)


def test_a_loader_can_be_iterated_twice():
    loader = build_train_loader(videos(3), 2, Identity(), 2, num_workers=0)
    assert_same([next(iter(loader))], [next(iter(loader))])


@pytest.mark.parametrize(("iteration", "accumulate"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2), (1, 3)])
def test_a_curriculum_switches_at_an_iteration_for_any_gradient_accumulation(iteration, accumulate):
    """Clips of one frame for iterations 0 and 1, of two frames afterwards; batch numbers are consecutive."""
    loaders = [build_train_loader(videos(3), length, Identity(), 1, num_workers=0) for length in (1, 2)]
    curriculum = Curriculum(loaders, [0, 2])
    curriculum.seek(iteration, accumulate)
    clips = [clip for (clip,) in islice(curriculum, 3 * accumulate)]
    due = [i for i in range(iteration, iteration + 3) for _ in range(accumulate)]
    assert [len(clip) for clip in clips] == [1 if i < 2 else 2 for i in due]
    assert [clip.key[1:] for clip in clips] == [(due[i], i % accumulate) for i in range(len(due))]


def test_a_summary_counts_videos_tracks_and_held_out_videos():
    """Ten videos, of which two are held out, and three others; drawn 3 : 1."""
    trained = holdout(videos(10), fraction=0.2, held=False)
    mixture = Mixture([trained, videos(3)], [3.0, 1.0])
    tracks = [sum(len(video.labels) for video in dataset.videos) for dataset in mixture.datasets]
    loader = build_train_loader(mixture, 2, Identity(), 4, num_workers=0)
    lines = loader.summary()
    assert lines[:3] == [
        "batches of 4 clips, frames per clip: 2",
        f"8 videos, {tracks[0]} tracks, 75% of the clips; 2 videos held out",
        f"3 videos, {tracks[1]} tracks, 25% of the clips",
    ]
    assert lines[3].startswith(f"{len(mixture.classes)} classes: {mixture.classes[0]['name']}")
    first, *_, last = Curriculum([loader, loader], [0, 1200]).summary()
    assert (first, last) == (f"from iteration 0: {lines[0]}", lines[3])


@pytest.mark.parametrize("world_size", [1, 2])
def test_accumulated_batches_hold_the_clips_of_one_large_batch(world_size):
    """Two batches of 2 per iteration, against one of 4: equal clips and keys, over all processes together."""

    def iterations(total, accumulate, count=2):
        loaders = [
            build_train_loader(videos(3), 2, AUGMENT, total, num_workers=0, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for loader in loaders:
            loader.seek(1, accumulate)
        streams = [islice(loader, count * accumulate) for loader in loaders]
        clips = [[clip for batch in parts for clip in batch] for parts in zip(*streams, strict=True)]
        steps = [list(chain(*clips[i : i + accumulate])) for i in range(0, len(clips), accumulate)]
        return [sorted(step, key=lambda clip: clip.key) for step in steps]

    whole, parts = iterations(4, 1), iterations(2, 2)
    assert [[clip.key for clip in step] for step in whole] == [[(0, i, n) for n in range(4)] for i in (1, 2)]
    assert [[clip.key for clip in step] for step in parts] == [[clip.key for clip in step] for step in whole]
    assert_same(parts, whole)


def test_seek_does_not_affect_a_running_iterator():
    loader = build_train_loader(videos(3), 2, Identity(), 2, num_workers=0)
    running = iter(loader)
    loader.seek(9)
    assert next(running)[0].key == (0, 0, 0)


def test_loading_does_not_use_the_global_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(1)
    assert torch.equal(torch.rand(3), expected)


def test_cut_clips_show_two_videos_and_do_not_depend_on_processes():
    whole, plain = (
        batches(2, augment=Identity(), cuts=SceneCuts(end=1, interrupt=0)),
        batches(2, augment=Identity()),
    )
    ranks = [
        batches(2, augment=Identity(), cuts=SceneCuts(end=1, interrupt=0), rank=r, world_size=2)
        for r in range(2)
    ]
    assert_same(whole, [a + b for a, b in zip(*ranks, strict=True)])
    seen = []
    for cut, uncut in zip(chain(*whole), chain(*plain), strict=True):
        assert torch.equal(cut.frames[0], uncut.frames[0])
        seen.append(cut.targets.visible.int().tolist())
    assert [[1, 1, 1]] in seen, "one of seven videos is its own second video, and is not cut"
    assert {str(visible) for visible in seen} == {
        "[[1, 1, 1]]",
        "[[1, 1, 0], [0, 0, 1]]",
        "[[1, 0, 0], [0, 1, 1]]",
    }


def test_every_epoch_is_a_permutation_of_the_videos():
    """7 videos in batches of 4: epochs end within a batch."""
    order = [clip.video_id for batch in batches(14) for clip in batch]
    epochs = [order[i : i + 7] for i in range(0, 56, 7)]
    assert all(sorted(epoch) == [1, 2, 3, 4, 5, 6, 7] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 4


def test_a_mixture_draws_datasets_by_weight():
    mixture = Mixture([videos(3), videos(5, first=100)], [1, 0.25])
    drawn = [mixture.draw(0, position)[0].id for position in range(3000)]
    share = sum(identity >= 100 for identity in drawn) / len(drawn)
    assert share == pytest.approx(0.2, abs=0.03)
    assert min(Counter(drawn).values()) > 60


def test_a_batch_of_a_mixture_has_clips_of_several_datasets():
    mixture = Mixture([videos(3), videos(5, first=100)], [1, 1])
    kinds = [{clip.video_id >= 100 for clip in batch} for batch in batches(10, dataset=mixture)]
    assert sum(len(kind) == 2 for kind in kinds) >= 6


def test_a_mixture_does_not_depend_on_the_number_of_processes():
    mixture = Mixture([videos(3), videos(5, first=100)], [1, 1])
    ranks = [batches(3, dataset=mixture, rank=rank, world_size=4) for rank in range(4)]
    together = [[clip for part in parts for clip in part] for parts in zip(*ranks, strict=True)]
    assert_same(batches(3, dataset=mixture), together)


@pytest.mark.parametrize(("option", "value"), [("num_workers", -1), ("clip_length", 0), ("window", -1)])
def test_numbers_that_are_too_small_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"{option}={value}: expected"):
        batches(1, **{option: value})


def test_an_indivisible_batch_size_is_refused():
    with pytest.raises(UserError, match="total_batch_size 5 cannot be divided equally among 2 processes"):
        build_train_loader(videos(3), 2, Identity(), 5, rank=0, world_size=2)


def test_a_mixture_with_different_classes_or_missing_weights_is_refused():
    other = VideoDataset(videos(1).videos, [{"id": 2, "name": "other"}])
    with pytest.raises(UserError, match="dataset 1 has other classes than dataset 0"):
        Mixture([videos(1), other], [1, 1])
    with pytest.raises(UserError, match="one positive weight for each of 2 datasets"):
        Mixture([videos(1), videos(1)], [1])


def test_a_dataset_without_annotations_is_refused_for_training():
    with pytest.raises(UserError, match="no annotated instance"):
        build_train_loader(VideoDataset([], CLASSES), 2, Identity(), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_file_raises_one_line(workers):
    dataset = VideoDataset([Noise(1, broken=True, name="yard")], CLASSES)
    loader = build_train_loader(dataset, 1, Identity(), 1, num_workers=workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("yard/")
    assert str(caught.value).endswith(".jpg: not a readable image.")


def half_broken() -> VideoDataset:
    return VideoDataset([Noise(i, broken=i % 2 == 0, name=f"yard{i}") for i in range(8)], CLASSES)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_files_are_skipped_logged_once_and_counted(workers, caplog):
    """4 of 8 videos are corrupt; every position of the stream still has a clip."""
    loader = build_train_loader(half_broken(), 1, Identity(), 4, num_workers=workers, skip_unreadable=True)
    clips = [clip for batch in islice(loader, 20) for clip in batch]
    assert [clip.key for clip in clips] == [(0, i, j) for i in range(20) for j in range(4)]
    assert {clip.video_id for clip in clips} == {1, 3, 5, 7}
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(messages) == sorted(set(messages))
    assert {line.split("/")[0] for line in messages} == {f"skipped: yard{i}" for i in (0, 2, 4, 6)}
    assert len(messages) == len(loader.skipped)
    assert sum(loader.skipped.values()) > 40, "half of 80 draws, and of their replacements"


def test_resume_is_exact_with_skipped_files():
    def clips(number, start, workers):
        options = {"num_workers": workers, "skip_unreadable": True}
        loader = build_train_loader(half_broken(), 3, AUGMENT, 4, seed=5, **options)
        loader.seek(start)
        return list(islice(loader, number))

    assert_same(clips(7, 0, 0)[4:], clips(3, 4, 2))


def test_a_dataset_of_corrupt_files_raises_despite_skipping():
    dataset = VideoDataset([Noise(1, broken=True, name="yard")], CLASSES)
    loader = build_train_loader(dataset, 1, Identity(), 1, num_workers=0, skip_unreadable=True)
    with pytest.raises(UserError, match=r"^yard/.*21 videos in a row cannot be read"):
        next(iter(loader))


def test_datasets_of_a_mixture_can_have_different_augmentations():
    mixture = Mixture([videos(3), videos(5, first=100)], [1, 1], [None, resized_to(20)])
    clips = [clip for batch in batches(8, dataset=mixture, augment=Identity()) for clip in batch]
    assert {(clip.video_id >= 100, clip.frames.shape[-2]) for clip in clips} == {(False, 10), (True, 20)}
    with pytest.raises(UserError, match="one augmentation for each of 2 datasets, got 1"):
        Mixture([videos(3), videos(5)], [1, 1], [None])


# ----------------------------------------------------------------------------------------------- whole videos


def test_a_test_loader_gives_whole_videos_in_order():
    dataset = VideoDataset([Noise(3, length=4), Noise(8, length=2)], CLASSES)
    loader = build_test_loader(dataset, short_edge=5, max_size=100)
    assert len(loader) == 2
    (first,), (second,) = loader
    assert (first.video_id, len(first), first.frame_ids) == (3, 4, (0, 1, 2, 3))
    assert (second.video_id, len(second), second.size) == (8, 2, (10, 14))
    assert first.targets is None
    assert first.frames[0].shape == (3, 5, 7)


def test_videos_are_divided_among_processes():
    shares = [build_test_loader(videos(5), 5, 9, rank=rank, world_size=2) for rank in range(2)]
    assert [[clip.video_id for (clip,) in share] for share in shares] == [[1, 3, 5], [2, 4]]
    assert [len(share) for share in shares] == [3, 2]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_lazy_frames_are_a_sequence(threads):
    record = Noise(4, length=8)
    frames = LazyFrames(record, 10, 99, threads)
    assert len(frames) == 8
    assert torch.equal(frames[2], record.frame(2))
    assert torch.equal(frames[-1], record.frame(7))
    assert [torch.equal(a, record.frame(t)) for t, a in enumerate(frames)] == [True] * 8
    assert len(frames[2:5]) == 3
    with pytest.raises(IndexError):
        frames[8]


def test_lazy_frames_prefetch_a_bounded_number_of_frames(tmp_path: Path):
    read: list[int] = []

    class Watched(Noise):
        def frame(self, t: int) -> Tensor:
            read.append(t)
            return super().frame(t)

    loop = iter(LazyFrames(Watched(1, length=50), 10, 99, num_threads=2))
    next(loop)
    assert set(read) <= {0, 1, 2, 3}
    loop.close()


def test_a_corrupt_frame_of_a_lazy_video_raises_one_line():
    for threads in (0, 2):
        frames = LazyFrames(Noise(1, broken=True, name="yard"), 10, 99, threads)
        with pytest.raises(UserError, match=r"^yard/0\.jpg: not a readable image\.$"):
            next(iter(frames))
