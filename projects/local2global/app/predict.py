"""A trained model in a user's hands: `L2G` streams any source and writes its annotated video and tracks.

    model = L2G.from_pretrained("output/run")
    for frame in model.stream("video.mp4"):
        frame.ids, frame.labels, frame.scores, frame.masks

Memory does not grow with the video: frames are decoded one by one, masks wait as RLE in a temporary file.
"""

from __future__ import annotations

import difflib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..data.augment import resize_shortest_edge
from ..errors import UserError, make_folder
from ..lazy import apply_overrides, instantiate, load_resolved
from ..results.instances import Aggregate, VideoPostprocessor, one_behind
from ..results.tracks import best_tracks, write_tracks
from ..structures import FramePredictions, FrameResult
from ..weights.checkpoint import find_config, load_checkpoint, load_weights, read_state
from .convert import image_config, known_variants
from .draw import draw
from .video import Source, VideoWriter, open_source

_ALL_PAIRS = 1 << 30  # a result's (slot, class) pairs are all kept: a cut could lose a slot that was drawn
_AHEAD = 4  # decoded frames that wait for the model: enough to hide decoding, few enough not to matter

Item = TypeVar("Item")
Progress = Callable[[int, int | None, int], None]


class StreamingModel(Protocol):
    """What `L2G` needs of a model, besides being an `nn.Module`."""

    classes: Sequence[dict[str, Any]]
    test_size: tuple[int, int]
    threshold: float
    aggregate: Aggregate

    def stream(self, frames: Iterable[Tensor]) -> Iterator[FramePredictions]:
        """Frame t's predictions before frame t + 1 is read."""


@dataclass(frozen=True)
class Prediction:
    """What `L2G.predict` wrote.

    Attributes:
        video: the annotated mp4.
        tracks: the tracks.json.
        frames: how many frames were read.
        seconds: how long it took.
        announced: how many frames the source said it has; None where it doesn't.
    """

    video: Path
    tracks: Path
    frames: int
    seconds: float
    announced: int | None = None


class L2G:
    """A model ready to stream.

    Args:
        model: a `StreamingModel` that is an `nn.Module`; it is put in evaluation mode.
        device: where it runs; by default the first GPU, or the CPU without one.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        """Moves the model to its device."""
        self.device = choose_device(device)
        self._module = model.to(self.device).eval()
        self._turn = threading.Lock()  # videos of other threads wait: the model takes one frame at a time

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()
    ) -> L2G:
        """Builds the model of a run and loads its weights.

        Args:
            path: a .pth, .pkl or .safetensors file, or a run's folder (its model_final.pth or last checkpoint).
                The model is described by the config.yaml beside the weights; a released MaskDINO needs none, but
                `model.tracker=bypass` among the overrides.
            device: where it runs; by default the first GPU, or the CPU without one.
            overrides: changes to the config, as `key=value`.

        Raises:
            UserError: if the weights or the config are missing, damaged, or do not belong together.
        """
        place = choose_device(device)
        weights = find_weights(path)
        content = load_checkpoint(weights)
        if weights.with_name("config.yaml").is_file() or read_state(content, str(weights)).project is None:
            # Only the model's part is read: the run's data and its truth need not exist here.
            config = load_resolved(find_config(weights), ("model",))
            apply_overrides(config, overrides, known_variants() if overrides else None)
        else:
            config = image_config(content, str(weights), overrides)
        model = instantiate(config.model)
        load_weights(model, content, source=str(weights))
        return cls(model, place)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """The classes, {id, name} each; a result's label k is the k-th."""
        return list(self._model.classes)

    @property
    def caveat(self) -> str | None:
        """What to know before looking at identities, if anything."""
        return getattr(getattr(self._module, "tracker", None), "caveat", None)

    @property
    def _model(self) -> StreamingModel:
        return cast(StreamingModel, self._module)

    def stream(
        self,
        source: str | Path | Source | Iterable[Tensor],
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
    ) -> Iterator[FrameResult]:
        """Segments frame by frame: each result comes before the next frame is needed.

        Args:
            source: anything `open_source` opens (decoded ahead in a thread), or frames of one size, (3, H, W)
                uint8 RGB, read one at a time as results are asked for: a camera works.
            threshold: report objects from this score on; by default the model's.
            classes: report only these class names.
            max_objects: report at most this many per frame, the best.

        Yields:
            one result per frame, masks at the source's size.

        Raises:
            UserError: for a source that cannot be read, or an unknown class name.
        """
        keep = _Filter.of(self._model, threshold, classes, max_objects)
        if isinstance(source, (str, Path)):
            source = open_source(source)
        return self._stream(source, keep)

    def predict(
        self,
        source: str | Path | Source,
        output_dir: str | Path,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Writes `<output_dir>/<name>/video.mp4`, the annotated video, and `tracks.json` beside it.

        The video has the source's size and rate.  The tracks are YouTube-VIS JSON: `videos`, `categories` and
        `annotations` with `score` and `segmentations` (per frame an RLE, null for an empty mask).  There is
        one track for every object that was drawn on a frame: `id` is the one drawn, the class its best over
        the whole video, its masks those of all frames, those on which its score was low included.  Neither
        file appears before it is whole, and none after an error.

        Args:
            source: anything `open_source` opens.
            output_dir: made if missing; files of the same name are replaced.
            threshold: draw objects from this score on; by default the model's.
            classes: only these class names.
            max_objects: draw at most this many per frame, the best.
            progress: called after every frame with (frames done, frames in all or None, objects on it).

        Raises:
            UserError: for a source that cannot be read, or an unknown class name.
        """
        start = time.perf_counter()
        keep = _Filter.of(self._model, threshold, classes, max_objects)
        opened = source if isinstance(source, Source) else open_source(source)
        folder = Path(output_dir) / opened.name
        video, tracks = folder / "video.mp4", folder / "tracks.json"
        post = VideoPostprocessor(
            opened.size, threshold=keep.threshold, aggregate=self._model.aggregate, keep=_ALL_PAIRS
        )
        drawn: set[int] = set()
        with _made(folder), post, VideoWriter(video, opened.fps, opened.size) as writer:
            with closing(self._results(opened, keep, post)) as results:
                for frame, result in results:
                    writer.write(draw(frame, result, self.classes))
                    drawn.update(result.ids.tolist())
                    if progress is not None:
                        progress(writer.count, opened.length, len(result.ids))
            found = post.result(video_id=1)
            about = {"name": opened.name, "fps": float(opened.fps)}
            write_tracks(tracks, found, best_tracks(found, drawn, keep.labels), self.classes, about)
        return Prediction(video, tracks, found.length, time.perf_counter() - start, opened.length)

    def _stream(self, source: Source | Iterable[Tensor], keep: _Filter) -> Iterator[FrameResult]:
        if not isinstance(source, Source):
            frames = iter(source)
            first = next(frames, None)
            if first is None:
                return
            source_size = (first.shape[1], first.shape[2])
            source = chain([first], frames)
        else:
            source_size = source.size
        post = VideoPostprocessor(source_size, threshold=keep.threshold, spill=False)
        with post, closing(self._results(source, keep, post)) as results:
            for _, result in results:
                yield result

    @torch.inference_mode()
    def _results(
        self, source: Source | Iterable[Tensor], keep: _Filter, post: VideoPostprocessor
    ) -> Generator[tuple[Tensor, FrameResult], None, None]:
        """Every frame with its result.  Only our own sources are read ahead: a camera must not be."""
        pairs = self._resized(source)
        ahead = isinstance(source, Source)
        if ahead:
            pairs = prefetch(pairs, _AHEAD)
        arrived: deque[Tensor] = deque()

        def feed() -> Iterator[Tensor]:
            while arrived:
                yield arrived.popleft()

        def look() -> Iterator[tuple[Tensor, FramePredictions]]:
            found = self._model.stream(feed())
            for frame, resized in pairs:
                arrived.append(resized)
                with self._turn:
                    predictions = next(found)
                yield frame, predictions

        def read(seen: tuple[Tensor, FramePredictions]) -> tuple[Tensor, FrameResult]:
            frame, predictions = seen
            return frame, keep.apply(post.update(predictions))

        with closing(pairs):
            yield from one_behind(look(), read, self.device) if ahead else map(read, look())

    def _resized(self, frames: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        for frame in frames:
            yield frame, resize_shortest_edge(frame, *self._model.test_size)


@dataclass(frozen=True)
class _Filter:
    """Which objects of a frame are reported."""

    threshold: float
    labels: frozenset[int] | None
    most: int | None

    @classmethod
    def of(
        cls,
        model: StreamingModel,
        threshold: float | None,
        names: Sequence[str] | None,
        max_objects: int | None,
    ) -> _Filter:
        labels = None if names is None else frozenset(_label(model.classes, name) for name in names)
        return cls(model.threshold if threshold is None else threshold, labels, max_objects)

    def apply(self, result: FrameResult) -> FrameResult:
        """The result without what is not wanted, its order kept."""
        if self.labels is None and (self.most is None or len(result.ids) <= self.most):
            return result
        rows = list(range(len(result.ids)))
        if self.labels is not None:
            rows = [i for i in rows if int(result.labels[i]) in self.labels]
        if self.most is not None:
            rows = sorted(sorted(rows, key=lambda i: -float(result.scores[i]))[: self.most])
        kept = torch.tensor(rows, dtype=torch.int64)
        parts = {name: getattr(result, name)[kept] for name in ("ids", "labels", "scores", "masks", "boxes")}
        return replace(result, **parts)


def _label(classes: Sequence[dict[str, Any]], name: str) -> int:
    known = [str(c["name"]).lower() for c in classes]
    if name.lower() in known:
        return known.index(name.lower())
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"The classes are {', '.join(known)}."
    raise UserError(f"no class '{name}'. {hint}")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder; after an error it goes again with those made above it, unless something else is in them."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    make_folder(folder, "--output")
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for one in new or [folder]:
                one.rmdir()
        raise


def default_device() -> str:
    """The first GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device that a name means; None for the default.

    Raises:
        UserError: if there is no such kind of device, or none of it here.
    """
    try:
        place = torch.device(device or default_device())
    except RuntimeError as error:
        raise UserError(f"device {device}: no such kind of device; use cuda, cuda:1 or cpu") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: torch sees {torch.cuda.device_count()} GPUs here; use cpu")
    return place


def find_weights(path: str | Path) -> Path:
    """The weights file that a path means.

    Args:
        path: the file itself, or a run's folder.

    Raises:
        UserError: if there is none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"{path}: no such weights; give a .pth or .safetensors file, or the folder of a run")
    # The marker first: after a second run in the same folder a `model_final.pth` may be the first one's.
    marker = place / "last_checkpoint"
    if marker.is_file():
        last = place / marker.read_text().strip()
        if last.is_file():
            return last
        raise UserError(f"{marker}: names {last.name}, which is not in that folder")
    final = place / "model_final.pth"
    if final.is_file():
        return final
    raise UserError(f"{path}: no weights in this folder (neither last_checkpoint nor model_final.pth)")


def prefetch(items: Iterable[Item], ahead: int) -> Generator[Item, None, None]:
    """Reads ahead in one background thread; an error comes out where its item would have.

    The thread ends when the consumer stops, early or not.

    Args:
        items: what to read; used by the thread alone.
        ahead: how many items may wait.
    """
    waiting: queue.Queue[Item | _Ended] = queue.Queue(ahead)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_read_into, args=(waiting, stopped, items), name="l2g-decode", daemon=True
    )
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True)
class _Ended:
    """The last thing in a queue: there is no more, or what went wrong."""

    error: Exception | None = None


def _read_into(waiting: queue.Queue[Any], stopped: threading.Event, items: Iterable[Any]) -> None:
    """Fills the queue until the items end or nobody waits; closes the items in the thread that used them."""
    iterator = iter(items)
    try:
        for item in iterator:
            _put(waiting, stopped, item)
            if stopped.is_set():
                return
        _put(waiting, stopped, _Ended())
    except Exception as error:
        _put(waiting, stopped, _Ended(error))
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _put(waiting: queue.Queue[Any], stopped: threading.Event, item: Any) -> None:
    while not stopped.is_set():
        with suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return
