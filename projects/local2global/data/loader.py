"""Loaders: an endless, resumable stream of training clips, and whole videos for evaluation.

Every training clip is a function of (seed, iteration, global clip index) only.  The number of processes, the number
of workers and a resume do not change it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice, pairwise
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError, check_range
from ..randomness import keyed_generator
from ..structures import Clip
from .augment import resize_shortest_edge
from .clips import Augmentation, choose_frames, make_clip
from .datasets import VideoDataset, VideoRecord
from .holdout import PartOfVideos
from .scene_cuts import SceneCuts, can_cut, cut_to

logger = logging.getLogger(__name__)

#: The number of consecutive unreadable videos that are skipped; one more is an error of the whole dataset.
MAX_SKIPS = 20

#: Tracks of larger data sets are estimated from the first videos: a generated video takes milliseconds.
MAX_COUNTED, SAMPLE = 5_000, 500


def _processes(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes: the arguments, else those of torch.distributed, else a single process."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if running else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if running else 1
    return rank, world_size


def _trainers_iteration() -> int:
    """The next iteration of a running detectron2 trainer; 0 if none is running.

    That trainer does not pass its iteration to the loader after a resume, but its event storage has it.
    """
    running = getattr(sys.modules.get("detectron2.utils.events"), "_CURRENT_STORAGE_STACK", None)
    return int(running[-1].iter) if running else 0


@lru_cache(maxsize=16)
def _permutation(seed: int, dataset: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=keyed_generator(seed, "order", dataset, epoch)).int()


class Mixture:
    """Several datasets with one class list; the dataset of each clip is drawn by weight.

    Args:
        datasets: the datasets, whose class lists must be equal.
        weights: positive sampling weights, e.g. (1, 0.75); they need not add up to 1.
        augments: an augmentation for each dataset, None for the loader's; None uses the loader's for all datasets.

    Raises:
        UserError: if the class lists differ, or there is not one weight (or augmentation) for each dataset.
    """

    def __init__(
        self,
        datasets: Sequence[VideoDataset],
        weights: Sequence[float],
        augments: Sequence[Augmentation | None] | None = None,
    ) -> None:
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            expected = f"expected one positive weight for each of {len(datasets)} datasets"
            raise UserError(f"mixture: {expected}, got {list(weights)}.")
        for position, dataset in enumerate(datasets):
            if not any(len(video.labels) for video in dataset.videos):
                raise UserError(f"mixture: dataset {position} has no annotated instance to train on.")
            if dataset.classes != datasets[0].classes:
                problem = f"dataset {position} has other classes than dataset 0"
                raise UserError(f"mixture: {problem}. Load both with the same `classes`.")
        self.augments = tuple(augments) if augments is not None else (None,) * len(datasets)
        if len(self.augments) != len(datasets):
            problem = f"expected one augmentation for each of {len(datasets)} datasets"
            raise UserError(f"mixture: {problem}, got {len(self.augments)}.")
        self.datasets = tuple(datasets)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The class list of all datasets."""
        return self.datasets[0].classes

    def draw(self, seed: int, position: int, again: int = 0) -> tuple[VideoRecord, Augmentation | None]:
        """The video of the clip at `position` of the endless stream, and its dataset's augmentation.

        Each dataset is reshuffled in every epoch.  The position advances for all datasets, whichever is drawn: a
        single dataset shows every video once per epoch, several show each of their videos equally often on average.

        Args:
            seed: seed of the stream.
            position: position of the clip.
            again: the number of videos at this position that could not be read; each value draws another video.
        """
        number = 0
        if len(self.datasets) > 1:
            generator = keyed_generator(seed, "dataset", position)
            number = int(torch.multinomial(self.weights, 1, generator=generator))
        videos = self.datasets[number].videos
        epoch, index = divmod(position, len(videos))
        if again:
            generator = keyed_generator(seed, "again", position, again)
            index = int(torch.randint(len(videos), (1,), generator=generator))
        return videos[int(_permutation(seed, number, epoch, len(videos))[index])], self.augments[number]


@dataclass(frozen=True)
class ClipOrErrors:
    """An item of the training stream.  Errors are values: an exception in a worker would become a traceback.

    Attributes:
        clip: the clip, None if no video could be read.
        errors: the message of every video that could not be read.
    """

    clip: Clip | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainClips(Dataset[ClipOrErrors]):
    """Random access to the training stream: (iteration, global clip index) -> clip.

    Attributes:
        mixture: the datasets.
        clip_length: frames T of a clip.
        augment: augmentation of datasets that have none in the mixture.
        total_batch_size: clips of one iteration over all processes.
        seed: first part of every clip's key.
        window: the largest distance of other frames from the reference frame.
        tries: how often frames are redrawn until an instance is visible.
        skips: the number of unreadable videos that may be skipped for one clip.
        cuts: draws the frames that show another video; None for clips of one video.
    """

    mixture: Mixture
    clip_length: int
    augment: Augmentation
    total_batch_size: int
    seed: int
    window: int
    tries: int
    skips: int = 0
    cuts: SceneCuts | None = None

    def __getitem__(self, place: tuple[int, int]) -> ClipOrErrors:
        """The clip of (iteration, global clip index), and the errors of unreadable videos."""
        iteration, index = place
        key, position = (self.seed, iteration, index), iteration * self.total_batch_size + index
        first = self._read(position, key)
        if self.cuts is None or first.clip is None:
            return first
        generator = keyed_generator(*key, "cuts")
        other = self.cuts.draw(self.clip_length, generator)
        if not any(other):
            return first
        ahead = int(torch.randint(1, 1000, (), generator=generator))
        second = self._read(position + ahead, (*key, 1))
        errors = first.errors + second.errors
        if second.clip is None or not can_cut(first.clip, second.clip):
            return ClipOrErrors(first.clip, errors)
        return ClipOrErrors(cut_to(first.clip, second.clip, other), errors)

    def _read(self, position: int, key: tuple[int, ...]) -> ClipOrErrors:
        """The clip at a position of the endless stream; `key` is that of its random draws."""
        errors: list[str] = []
        for again in range(self.skips + 1):
            record, augment = self.mixture.draw(self.seed, position, again)
            try:
                frames = choose_frames(record, self.clip_length, self.window, key, self.tries)
                return ClipOrErrors(make_clip(record, frames, augment or self.augment, key), tuple(errors))
            except UserError as error:
                errors.append(str(error))
        return ClipOrErrors(None, tuple(errors))


@dataclass(frozen=True)
class _RankBatches(Sampler[list[tuple[int, int]]]):
    """The (iteration, clip index) pairs of one process in every batch from batch `start` on, without end.

    Attributes:
        start: the first batch.
        indices: clip indices of this process in a batch.
        batch_size: clips of a batch over all processes.
        accumulate: batches per iteration; their clips are numbered through.
    """

    start: int
    indices: range
    batch_size: int
    accumulate: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in count(self.start):
            iteration, part = divmod(batch, self.accumulate)
            yield [(iteration, part * self.batch_size + index) for index in self.indices]


def _as_list(items: list[ClipOrErrors]) -> list[ClipOrErrors]:
    return items


def describe_videos(dataset: VideoDataset, share: float) -> str:
    """One line: number of videos (or images), of their tracks and of held-out videos, and their share of the clips."""
    videos, size = dataset.videos, len(dataset)
    kind, objects = ("images", "instances") if videos[0].length == 1 else ("videos", "tracks")
    counted = size if size <= MAX_COUNTED else SAMPLE
    tracks = sum(len(videos[i].labels) for i in range(counted)) * size // counted
    about = "about " * (counted < size)
    line = f"{size:,} {kind}, {about}{tracks:,} {objects}"
    line += f", {share:.0%} of the clips" * (share < 1)
    if isinstance(dataset, PartOfVideos):
        line += f"; {len(dataset.whole) - size:,} {kind} held out"
    return line


class TrainLoader:
    """An endless iterable of this process's part of each batch.

    Args:
        clips: the stream.
        num_workers: worker processes that load clips ahead; 0 loads them in this process.
        rank: this process.
        world_size: the number of processes.
        prefetch: batches that each worker loads ahead.

    Attributes:
        skipped: the number of times each unreadable file was skipped, by error message.

    Raises:
        UserError: if the batch cannot be divided equally.  While iterating: for an unreadable file, unless `clips`
            skips it; a skipped file is logged once as a warning, and counted.
    """

    def __init__(
        self, clips: TrainClips, num_workers: int, rank: int, world_size: int, prefetch: int = 2
    ) -> None:
        total = clips.total_batch_size
        check_range("total_batch_size", total, 1, 100_000)
        if total % world_size:
            problem = f"cannot be divided equally among {world_size} processes: make it a multiple"
            raise UserError(f"total_batch_size {total} {problem}.")
        check_range("num_workers", num_workers, 0, 1000)
        check_range("clip_length", clips.clip_length, 1, 1000)
        check_range("window", clips.window, 0)
        check_range("tries", clips.tries, 0)
        per_rank = total // world_size
        self.clips = clips
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.indices = range(rank * per_rank, (rank + 1) * per_rank)
        self.start: int | None = None
        self.accumulate = 1
        self.skipped: Counter[str] = Counter()

    def summary(self) -> list[str]:
        """Lines on the clips of an iteration, the videos they are drawn from, and the classes."""
        mixture, total = self.clips.mixture, float(self.clips.mixture.weights.sum())
        shares = [float(weight) / total for weight in mixture.weights]
        names = ", ".join(str(entry["name"]) for entry in mixture.classes[:3])
        more = ", ..." * (len(mixture.classes) > 3)
        return [
            f"batches of {self.clips.total_batch_size} clips, frames per clip: {self.clips.clip_length}",
            *(
                describe_videos(dataset, share)
                for dataset, share in zip(mixture.datasets, shares, strict=True)
            ),
            f"{len(mixture.classes)} classes: {names}{more}",
        ]

    def seek(self, iteration: int, accumulate: int = 1) -> None:
        """Lets the next `iter` start at the first batch of `iteration`, where an iteration has `accumulate` batches.

        The clips of an iteration, their order and their keys depend on the number of clips of the iteration only, not
        on the number of batches.
        """
        self.start, self.accumulate = iteration * accumulate, accumulate

    def __iter__(self) -> Iterator[list[Clip]]:
        """Batches from the iteration set by `seek`, else from the iteration of a running detectron2 trainer."""
        start = _trainers_iteration() if self.start is None else self.start
        batch_size = self.clips.total_batch_size
        loader = DataLoader(
            replace(self.clips, total_batch_size=batch_size * self.accumulate),
            batch_sampler=_RankBatches(start, self.indices, batch_size, self.accumulate),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            prefetch_factor=self.prefetch if self.num_workers else None,
            # Otherwise the base seed of workers would be drawn from the global random stream.
            generator=torch.Generator(),
        )
        return self._clips(iter(loader))

    def _clips(self, batches: Iterator[list[ClipOrErrors]]) -> Iterator[list[Clip]]:
        try:
            for batch in batches:
                yield [self._clip(item) for item in batch]
        finally:
            # Workers stop when their iterator is deleted.  A traceback would otherwise keep it alive.
            del batches

    def _clip(self, item: ClipOrErrors) -> Clip:
        if item.clip is None:
            more = f" ({len(item.errors)} videos in a row cannot be read.)" if self.clips.skips else ""
            raise UserError(item.errors[-1] + more)
        for error in item.errors:
            if not self.skipped[error]:
                logger.warning("skipped: %s", error)
            self.skipped[error] += 1
        return item.clip


def build_train_loader(
    dataset: VideoDataset | Mixture,
    clip_length: int,
    augment: Augmentation,
    total_batch_size: int,
    num_workers: int = 4,
    seed: int = 0,
    window: int = 6,
    tries: int = 10,
    skip_unreadable: bool = False,
    cuts: SceneCuts | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainLoader:
    """The endless stream of training clips.

    Args:
        dataset: a dataset, or a `Mixture` of several.
        clip_length: frames T of a clip.
        augment: applied to every clip, e.g. `ClipAugmentation()`.
        total_batch_size: clips of one iteration over all processes.
        num_workers: worker processes that load clips ahead; 0 loads them in this process.
        seed: seed of the stream.
        window: the largest distance of other frames from the reference frame.
        tries: how often frames are redrawn until an instance is visible, before a clip without instances is accepted.
        skip_unreadable: skip a missing or corrupt file: log it once, count it and draw another video.
        cuts: cuts some clips to another video, if its frames have the same size after augmentation; None cuts none.
        rank: this process; None uses torch.distributed's.
        world_size: the number of processes; None uses torch.distributed's.

    Raises:
        UserError: if the batch cannot be divided equally, or nothing is annotated.
    """
    mixture = dataset if isinstance(dataset, Mixture) else Mixture([dataset], [1.0])
    skips = MAX_SKIPS if skip_unreadable else 0
    clips = TrainClips(mixture, clip_length, augment, total_batch_size, seed, window, tries, skips, cuts)
    return TrainLoader(clips, num_workers, *_processes(rank, world_size))


@dataclass(frozen=True)
class LazyFrames(Sequence[Tensor]):
    """A video's frames, decoded and resized on access; iteration decodes a few frames ahead in threads.

    Attributes:
        record: the video.
        short_edge: length of the shorter edge after resizing.
        max_size: upper limit of the longer edge.
        num_threads: threads that decode ahead during iteration; 0 decodes in the calling thread.
    """

    record: VideoRecord
    short_edge: int
    max_size: int
    num_threads: int = 0

    def __len__(self) -> int:
        """The number of frames."""
        return self.record.length

    @overload
    def __getitem__(self, t: int) -> Tensor: ...
    @overload
    def __getitem__(self, t: slice) -> list[Tensor]: ...
    def __getitem__(self, t: int | slice) -> Tensor | list[Tensor]:
        """(3, H, W) uint8 of frame `t`, or a list of them."""
        if isinstance(t, slice):
            return [self._frame(i) for i in range(len(self))[t]]
        return self._frame(range(len(self))[t])

    def __iter__(self) -> Iterator[Tensor]:
        """The frames in order; at most two frames per thread are in memory."""
        if not self.num_threads:
            yield from map(self._frame, range(len(self)))
            return
        pool = ThreadPoolExecutor(self.num_threads)
        ahead: deque[Future[Tensor]] = deque()
        try:
            for t in range(len(self)):
                ahead.append(pool.submit(self._frame, t))
                if len(ahead) == 2 * self.num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _frame(self, t: int) -> Tensor:
        return resize_shortest_edge(self.record.frame(t), self.short_edge, self.max_size)


@dataclass(frozen=True)
class VideoLoader:
    """One clip per video, in order, of this process's part of a dataset.

    Attributes:
        videos: this process's videos.
        short_edge: length of the shorter edge after resizing.
        max_size: upper limit of the longer edge.
        num_workers: threads that decode ahead.
    """

    videos: tuple[VideoRecord, ...]
    short_edge: int
    max_size: int
    num_workers: int

    def __len__(self) -> int:
        """The number of this process's videos."""
        return len(self.videos)

    def __iter__(self) -> Iterator[list[Clip]]:
        """Lists of one clip without targets; `size` is that of the source frames."""
        for video in self.videos:
            frames = LazyFrames(video, self.short_edge, self.max_size, self.num_workers)
            yield [Clip(frames, size=video.size, video_id=video.id, frame_ids=tuple(range(video.length)))]


def build_test_loader(
    dataset: VideoDataset,
    short_edge: int,
    max_size: int,
    num_workers: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> VideoLoader:
    """A loader of whole videos: every `world_size`-th video, starting at `rank`.

    Args:
        dataset: the videos.
        short_edge: length of the shorter edge after resizing.
        max_size: upper limit of the longer edge.
        num_workers: threads that decode ahead during iteration.
        rank: this process; None uses torch.distributed's.
        world_size: the number of processes; None uses torch.distributed's.

    Raises:
        UserError: for a size or number out of range.
    """
    check_range("short_edge", short_edge, 1)
    check_range("max_size", max_size, 1)
    check_range("num_workers", num_workers, 0, 1000)
    rank, world_size = _processes(rank, world_size)
    videos = tuple(dataset.videos[i] for i in range(rank, len(dataset), world_size))
    return VideoLoader(videos, short_edge, max_size, num_workers)


class Curriculum:
    """Training loaders in sequence, e.g. short clips first, then long ones.

    Args:
        loaders: endless loaders.
        starts: the iteration at which each loader starts, increasing from 0.  An iteration is an optimizer step,
            whatever the number of accumulated batches.

    Raises:
        UserError: if there are not as many starts as loaders, or they do not increase from 0.
    """

    def __init__(self, loaders: Sequence[TrainLoader], starts: Sequence[int]) -> None:
        self.loaders, self.starts = list(loaders), [int(start) for start in starts]
        increasing = self.starts[:1] == [0] and all(a < b for a, b in pairwise(self.starts))
        if len(self.loaders) != len(self.starts) or not increasing:
            raise UserError(
                f"curriculum: {len(self.loaders)} loaders need as many starts, increasing from 0."
            )
        self.start: int | None = None
        self.accumulate = 1

    @property
    def skipped(self) -> Counter[str]:
        """The number of times each unreadable file was skipped, by error message."""
        return sum((loader.skipped for loader in self.loaders), Counter())

    def summary(self) -> list[str]:
        """The first line of each loader that has a summary, with the iteration of its start; then the other lines."""
        parts: list[list[str]] = [getattr(loader, "summary", list)() for loader in self.loaders]
        starts = zip(self.starts, parts, strict=True)
        first = [f"from iteration {start:,}: {line}" for start, lines in starts for line in lines[:1]]
        return [*first, *dict.fromkeys(line for lines in parts for line in lines[1:])]

    def seek(self, iteration: int, accumulate: int = 1) -> None:
        """Lets the next `iter` start at the first batch of `iteration`, where an iteration has `accumulate` batches."""
        self.start, self.accumulate = iteration * accumulate, accumulate

    def __iter__(self) -> Iterator[list[Clip]]:
        """Batches from the iteration set by `seek`, else from the iteration of a running detectron2 trainer."""
        position = _trainers_iteration() if self.start is None else self.start
        ends = [start * self.accumulate for start in self.starts[1:]]
        for loader, end in zip(self.loaders, [*ends, None], strict=True):
            if end is not None and position >= end:
                continue
            loader.seek(position // self.accumulate, self.accumulate)
            for batch in islice(loader, None if end is None else end - position):
                yield batch
                position += 1
