"""Loaders: an endless, resumable stream of training clips, and one whole video after another for tests.

Every training clip is a function of (seed, iteration, global clip index) alone, so the number of processes,
the number of workers and a resume change nothing.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice, pairwise
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError
from ..randomness import keyed_generator
from ..structures import Clip
from .augment import resize_shortest_edge
from .clips import Augmentation, choose_frames, make_clip
from .datasets import VideoDataset, VideoRecord

logger = logging.getLogger(__name__)

#: Unreadable videos in a row after which a dataset is taken to be broken, not a file of it.
MOST_SKIPS = 20


def _processes(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of processes: as given, else torch.distributed's, else a single process."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if running else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if running else 1
    return rank, world_size


def _trainers_iteration() -> int:
    """The iteration that a running trainer of detectron2 is about to make; 0 where none runs.

    After a resume that trainer asks for batches anew and tells nobody where it stands, but its event storage counts.
    """
    running = getattr(sys.modules.get("detectron2.utils.events"), "_CURRENT_STORAGE_STACK", None)
    return int(running[-1].iter) if running else 0


@lru_cache(maxsize=16)
def _permutation(seed: int, dataset: int, epoch: int, size: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=keyed_generator(seed, "order", dataset, epoch)).tolist())


class Mixture:
    """Several datasets of one class list; each clip's dataset is drawn by weight, so every batch is a mix.

    Args:
        datasets: the datasets, whose class lists must be equal.
        weights: their shares, e.g. (1, 0.75); any positive scale.
        augments: each dataset's own augmentation, or None for the loader's; None for the loader's throughout.

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
            wanted = f"expected one positive weight for each of {len(datasets)} datasets"
            raise UserError(f"mixture: {wanted}, got {list(weights)}.")
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
        """The class list that the datasets share."""
        return self.datasets[0].classes

    def draw(self, seed: int, position: int, again: int = 0) -> tuple[VideoRecord, Augmentation | None]:
        """The video of the clip at `position` of the endless stream, and its dataset's augmentation.

        Each dataset is shuffled anew in every epoch.  A position counts for all datasets, whichever is drawn:
        one alone shows every video once per epoch, several show each of theirs equally often on average.

        Args:
            seed: names the stream.
            position: of the clip.
            again: the number of draws at this position that could not be read; each draws another video.
        """
        chosen = 0
        if len(self.datasets) > 1:
            generator = keyed_generator(seed, "dataset", position)
            chosen = int(torch.multinomial(self.weights, 1, generator=generator))
        videos = self.datasets[chosen].videos
        epoch, place = divmod(position, len(videos))
        if again:
            place = int(
                torch.randint(len(videos), (1,), generator=keyed_generator(seed, "again", position, again))
            )
        return videos[_permutation(seed, chosen, epoch, len(videos))[place]], self.augments[chosen]


@dataclass(frozen=True)
class Made:
    """What came of a place in the stream.

    Attributes:
        clip: the clip, None where nothing could be read.
        complaints: what is wrong with the files that were tried, a line each.
    """

    clip: Clip | None
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainClips(Dataset[Made]):
    """Random access to the training stream: (iteration, global clip index) -> clip.

    Attributes:
        mixture: where videos come from.
        clip_length: frames T of a clip.
        augment: applied to the clips of datasets without an augmentation of their own.
        total_batch_size: clips of one iteration over all processes.
        seed: first part of every clip's key.
        window: how far from the reference frame the others may lie.
        tries: how often frames are drawn for a clip that shows an instance.
        skips: how many unreadable files a clip may meet; another video is drawn after each.
    """

    mixture: Mixture
    clip_length: int
    augment: Augmentation
    total_batch_size: int
    seed: int
    window: int
    tries: int
    skips: int = 0

    def __getitem__(self, place: tuple[int, int]) -> Made:
        """The clip, and what is wrong with files: raised in a worker, it would arrive in a traceback."""
        iteration, index = place
        key = (self.seed, iteration, index)
        complaints: list[str] = []
        for again in range(self.skips + 1):
            position = iteration * self.total_batch_size + index
            record, own = self.mixture.draw(self.seed, position, again)
            try:
                frames = choose_frames(record, self.clip_length, self.window, key, self.tries)
                return Made(make_clip(record, frames, own or self.augment, key), tuple(complaints))
            except UserError as error:
                complaints.append(str(error))
        return Made(None, tuple(complaints))


@dataclass(frozen=True)
class _Share(Sampler[list[tuple[int, int]]]):
    """The places of one process in every iteration from `start` on, without end."""

    start: int
    indices: range

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in count(self.start):
            yield [(iteration, index) for index in self.indices]


def _as_list(made: list[Made]) -> list[Made]:
    return made


class TrainLoader:
    """An endless iterable of this process's share of each batch.

    Args:
        clips: the stream.
        num_workers: processes that make clips ahead; 0 makes them in this one.
        rank: this process.
        world_size: the number of processes.
        prefetch: batches that each worker makes ahead.

    Attributes:
        skipped: how often each unreadable file was met, by what is wrong with it.

    Raises:
        UserError: if the batch cannot be shared out equally; while iterating, for an unreadable file, unless `clips`
            skips it: then it is told once, as a warning of this module's logger, and counted.
    """

    def __init__(
        self, clips: TrainClips, num_workers: int, rank: int, world_size: int, prefetch: int = 2
    ) -> None:
        total = clips.total_batch_size
        if total <= 0 or total % world_size:
            problem = f"cannot be shared equally by {world_size} processes: make it a multiple"
            raise UserError(f"total_batch_size {total} {problem}.")
        share = total // world_size
        self.clips = clips
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.indices = range(rank * share, (rank + 1) * share)
        self.start: int | None = None
        self.skipped: Counter[str] = Counter()

    def seek(self, iteration: int, accumulate: int = 1) -> None:
        """Make the next `iter` begin with the first batch of `iteration`, if every iteration takes `accumulate`."""
        self.start = iteration * accumulate

    def __iter__(self) -> Iterator[list[Clip]]:
        """Batches from the sought iteration on; where none was sought, from that of a running detectron2 trainer."""
        start = _trainers_iteration() if self.start is None else self.start
        loader = DataLoader(
            self.clips,
            batch_sampler=_Share(start, self.indices),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            prefetch_factor=self.prefetch if self.num_workers else None,
            # Workers' base seed would otherwise be drawn from the global stream.
            generator=torch.Generator(),
        )
        return self._clips(iter(loader))

    def _clips(self, batches: Iterator[list[Made]]) -> Iterator[list[Clip]]:
        try:
            for batch in batches:
                yield [self._checked(made) for made in batch]
        finally:
            # The workers stop with their iterator: now, not when somebody lets go of an error's traceback.
            del batches

    def _checked(self, made: Made) -> Clip:
        if made.clip is None:
            more = f" ({len(made.complaints)} videos in a row cannot be read.)" if self.clips.skips else ""
            raise UserError(made.complaints[-1] + more)
        for complaint in made.complaints:
            if not self.skipped[complaint]:
                logger.warning("skipped: %s", complaint)
            self.skipped[complaint] += 1
        return made.clip


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
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainLoader:
    """The endless stream of training clips.

    Args:
        dataset: a dataset, or a `Mixture` of several.
        clip_length: frames T of a clip.
        augment: applied to every clip, e.g. `ClipAugmentation()`.
        total_batch_size: clips of one iteration over all processes.
        num_workers: processes that make clips ahead; 0 makes them in this one.
        seed: names the whole stream.
        window: how far from the reference frame the others may lie.
        tries: how often frames are drawn for a clip that shows an instance, before an empty one is accepted.
        skip_unreadable: tell of a missing or broken file once, count it and draw another video, instead of ending.
        rank: this process; None asks torch.distributed.
        world_size: the number of processes; None asks torch.distributed.

    Raises:
        UserError: if the batch cannot be shared out equally, or nothing is annotated.
    """
    mixture = dataset if isinstance(dataset, Mixture) else Mixture([dataset], [1.0])
    skips = MOST_SKIPS if skip_unreadable else 0
    clips = TrainClips(mixture, clip_length, augment, total_batch_size, seed, window, tries, skips)
    return TrainLoader(clips, num_workers, *_processes(rank, world_size))


@dataclass(frozen=True)
class LazyFrames(Sequence[Tensor]):
    """A video's frames, decoded and resized when asked for; a loop over them decodes a few ahead in threads.

    Attributes:
        record: the video.
        short_edge: length of the shorter edge after resizing.
        max_size: the most the longer edge may have.
        num_threads: threads that decode ahead in a loop; 0 decodes in the loop itself.
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
        """The frames in order; at most twice as many as there are threads are held."""
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
    """One clip a video, in order: this process's share of a dataset.

    Attributes:
        videos: the share.
        short_edge: length of the shorter edge after resizing.
        max_size: the most the longer edge may have.
        num_workers: threads that decode ahead.
    """

    videos: tuple[VideoRecord, ...]
    short_edge: int
    max_size: int
    num_workers: int

    def __len__(self) -> int:
        """The number of videos of this share."""
        return len(self.videos)

    def __iter__(self) -> Iterator[list[Clip]]:
        """Lists of one clip without targets; `size` is the source's."""
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
    """Whole videos, every `world_size`-th from `rank` on.

    Args:
        dataset: the videos.
        short_edge: length of the shorter edge after resizing.
        max_size: the most the longer edge may have.
        num_workers: threads that decode ahead while a video is looped over.
        rank: this process; None asks torch.distributed.
        world_size: the number of processes; None asks torch.distributed.
    """
    rank, world_size = _processes(rank, world_size)
    videos = tuple(dataset.videos[i] for i in range(rank, len(dataset), world_size))
    return VideoLoader(videos, short_edge, max_size, num_workers)


class Curriculum:
    """One training loader after another: short clips first, then long ones.

    Args:
        loaders: endless loaders.
        starts: the iteration from which each is read; the first is 0 and they rise.  An iteration is a step of the
            optimizer, however many batches a trainer accumulates for it.

    Raises:
        UserError: if there are not as many starts as loaders, or they don't rise from 0.
    """

    def __init__(self, loaders: Sequence[TrainLoader], starts: Sequence[int]) -> None:
        self.loaders, self.starts = list(loaders), [int(start) for start in starts]
        rising = self.starts[:1] == [0] and all(a < b for a, b in pairwise(self.starts))
        if len(self.loaders) != len(self.starts) or not rising:
            raise UserError(f"curriculum: {len(self.loaders)} loaders need as many starts, rising from 0.")
        self.start: int | None = None
        self.accumulate = 1

    @property
    def skipped(self) -> Counter[str]:
        """How often each unreadable file was met, by what is wrong with it."""
        return sum((loader.skipped for loader in self.loaders), Counter())

    def seek(self, iteration: int, accumulate: int = 1) -> None:
        """Make the next `iter` begin with the first batch of `iteration`, if every iteration takes `accumulate`."""
        self.start, self.accumulate = iteration * accumulate, accumulate

    def __iter__(self) -> Iterator[list[Clip]]:
        """Batches from the sought iteration on; where none was sought, from that of a running detectron2 trainer."""
        position = _trainers_iteration() if self.start is None else self.start
        ends = [start * self.accumulate for start in self.starts[1:]]
        for loader, end in zip(self.loaders, [*ends, None], strict=True):
            if end is not None and position >= end:
                continue
            loader.seek(position)
            for batch in islice(loader, None if end is None else end - position):
                yield batch
                position += 1
