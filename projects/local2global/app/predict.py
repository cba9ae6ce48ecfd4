"""`L2G`: a trained model that streams any source, and writes annotated videos and tracks.

    model = L2G.from_pretrained("output/run")
    for frame in model.stream("video.mp4"):
        frame.ids, frame.labels, frame.scores, frame.masks

Memory is constant in the length of the video: frames are decoded one by one, results are written frame by frame.
"""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..data.augment import resize_shortest_edge
from ..engine.settings import build
from ..errors import UserError
from ..lazy import apply_overrides, load_resolved
from ..results.instances import VideoPostprocessor, one_behind
from ..structures import FramePredictions, FrameResult
from ..weights.checkpoint import evaluation_state, find_config, load_checkpoint, load_weights, read_state
from .convert import image_config, known_variants
from .draw import Look, draw
from .result_folder import Prediction, finish, new_folder, open_record
from .video import Source, VideoWriter, open_source

_PREFETCH = 4  # decoded frames ahead of the model: hides decoding, uses little memory
_MAX_TEST_EDGE = 16384  # pixels
_END = object()

Item = TypeVar("Item")
Progress = Callable[[int, int | None, int], None]


class StreamingModel(Protocol):
    """The attributes of an `nn.Module` that `L2G` uses."""

    classes: Sequence[dict[str, Any]]
    test_size: tuple[int, int]
    threshold: float

    def stream(self, frames: Iterable[Tensor]) -> Iterator[FramePredictions]:
        """Yields the predictions of frame t before frame t + 1 is read."""


class L2G:
    """A model for inference.

    Args:
        model: an `nn.Module` with the attributes of `StreamingModel`; it is switched to evaluation mode.
        device: default: the first GPU, or the CPU without a GPU.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        """Moves the model to the device."""
        self.device = choose_device(device)
        self._module = model.to(self.device).eval()
        self._lock = threading.Lock()  # several threads may stream: the model processes one frame at a time

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()
    ) -> L2G:
        """Builds the model of a run and loads its weights.

        Args:
            path: a .pth, .pkl or .safetensors file, or the folder of a run (its model_final.pth or last checkpoint).
                The config.yaml beside the weights describes the model.  MaskDINO checkpoints need no config, but
                `model.tracker=bypass` among the overrides.
            device: default: the first GPU, or the CPU without a GPU.
            overrides: config overrides, `key=value`.

        Raises:
            UserError: if weights or config are missing or corrupt, or do not match.
        """
        place = choose_device(device)
        weights = find_weights(path)
        content = evaluation_state(load_checkpoint(weights), None, str(weights))
        if weights.with_name("config.yaml").is_file() or read_state(content, str(weights)).project is None:
            # Only the model is loaded: the datasets of the run need not exist on this machine.
            config = load_resolved(find_config(weights), ("model",))
            apply_overrides(config, overrides, known_variants() if overrides else None)
        else:
            config = image_config(content, str(weights), overrides)
        model = build(config, "model")
        if not isinstance(model, nn.Module):
            raise UserError(f"{weights}: 'model' of the config.yaml beside it describes no model")
        load_weights(model, content, source=str(weights))
        _check_model(model)
        return cls(model, place)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """{id, name} of every class; label k of a result is the k-th."""
        return list(self._model.classes)

    @property
    def caveat(self) -> str | None:
        """A limitation of the model's identities, in one line, or None."""
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
        """Segments a video online: the result for frame t is emitted before frame t + 1 is needed.

        Args:
            source: a path for `open_source`, decoded ahead in a thread; or an iterable of (3, H, W) uint8 RGB frames
                of one size, such as a camera, from which each frame is read only when its result is requested.
            threshold: minimal score of reported objects; default: the model's.
            classes: names of the reported classes; default: all.
            max_objects: maximal number of objects per frame; the best are reported.

        Yields:
            one result per frame, with masks of the size of the source.

        Raises:
            UserError: if the source cannot be read, or a class name is unknown.
        """
        report = _Filter.of(self._model, threshold, classes, max_objects)
        if isinstance(source, (str, Path)):
            source = open_source(source)
        return self._stream(source, report)

    def predict(
        self,
        source: str | Path | Source,
        output_dir: str | Path,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
        progress: Progress | None = None,
        look: Look | None = None,
    ) -> Prediction:
        """Writes the annotated video `<output_dir>/<name>/video.mp4` and, beside it, the reported objects.

        The video has the size and the time stamps of the source.  `frames.jsonl` is the record: one line per frame,
        written while the video runs.  `annotations.json` and `results.json` are made from it in the YouTube-VIS forms
        of truth and of results.  Objects have masks on the frames on which they were reported; annotation id = drawn
        id + 1.

        After an interrupt or an exception the files hold the frames done so far; there are none before the first frame.

        Args:
            source: a source, or a path for `open_source`.
            output_dir: created if missing; existing files are replaced.
            threshold: minimal score of drawn objects; default: the model's.
            classes: names of the drawn classes; default: all.
            max_objects: maximal number of drawn objects per frame; the best are drawn.
            progress: called after every frame with (frames done, number of frames or None, objects on the frame).
            look: what is drawn, and in which colours; default: masks, boxes and labels, coloured by identity.

        Raises:
            UserError: if the source cannot be read, a class name is unknown, or another process writes to the folder.
        """
        start = time.perf_counter()
        report = _Filter.of(self._model, threshold, classes, max_objects)
        opened = source if isinstance(source, Source) else open_source(source)
        folder = Path(output_dir) / opened.name
        post = VideoPostprocessor(opened.size, threshold=report.threshold, spill=False)
        with (
            new_folder(folder),
            open_record(folder, opened, self.classes) as record,
            post,
            VideoWriter(folder / "video.mp4", opened.fps, opened.size, keep_partial=True) as writer,
            closing(self._results(opened, report, post)) as results,
        ):
            for frame, time_stamp, result in results:
                writer.write(draw(frame, result, self.classes, look), time_stamp)
                record.append(result, time_stamp)
                if progress is not None:
                    progress(writer.count, opened.length, len(result.ids))
        return replace(finish(folder), seconds=time.perf_counter() - start, announced=opened.length)

    def _stream(self, source: Source | Iterable[Tensor], report: _Filter) -> Iterator[FrameResult]:
        if isinstance(source, Source):
            size = source.size
        else:
            frames = iter(source)
            first = next(frames, None)
            if first is None:
                return
            size = (first.shape[1], first.shape[2])
            source = chain([first], frames)
        post = VideoPostprocessor(size, threshold=report.threshold, spill=False)
        with post, closing(self._results(source, report, post)) as results:
            for _, _, result in results:
                yield result

    @torch.inference_mode()
    def _results(
        self, source: Source | Iterable[Tensor], report: _Filter, post: VideoPostprocessor
    ) -> Generator[tuple[Tensor, float, FrameResult], None, None]:
        """Yields every frame with its time stamp and its result.

        Only a `Source` is prefetched; a camera must not be, and its time stamps are 0.
        """
        prefetched = isinstance(source, Source)
        frames = source.read() if isinstance(source, Source) else ((frame, 0.0) for frame in source)
        items = (
            (frame, stamp, resize_shortest_edge(frame, *self._model.test_size)) for frame, stamp in frames
        )
        if prefetched:
            items = prefetch(items, _PREFETCH)
        inputs: deque[Tensor] = deque()

        def feed() -> Iterator[Tensor]:
            while inputs:
                yield inputs.popleft()

        def predictions() -> Iterator[tuple[Tensor, float, FramePredictions]]:
            stream = self._model.stream(feed())
            for frame, stamp, resized in items:
                inputs.append(resized)
                with self._lock:
                    output = _next(stream)
                yield frame, stamp, output

        def postprocess(item: tuple[Tensor, float, FramePredictions]) -> tuple[Tensor, float, FrameResult]:
            frame, stamp, output = item
            return frame, stamp, report.apply(post.update(output))

        with closing(items):
            if prefetched:
                yield from one_behind(predictions(), postprocess, self.device)
            else:
                yield from map(postprocess, predictions())


@dataclass(frozen=True)
class _Filter:
    """Selects the reported objects of a frame: by score, label and number."""

    threshold: float
    labels: frozenset[int] | None
    max_objects: int | None

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
        """Filters by label and number, in the original order; the post-processor applied the threshold."""
        rows = list(range(len(result.ids)))
        if self.labels is not None:
            rows = [i for i in rows if int(result.labels[i]) in self.labels]
        if self.max_objects is not None:
            rows = sorted(sorted(rows, key=lambda i: -float(result.scores[i]))[: self.max_objects])
        if len(rows) == len(result.ids):
            return result
        index = torch.tensor(rows, dtype=torch.int64)
        names = ("ids", "labels", "scores", "masks", "boxes")
        return replace(result, **{name: getattr(result, name)[index] for name in names})


def _label(classes: Sequence[dict[str, Any]], name: str) -> int:
    known = [str(c["name"]).lower() for c in classes]
    if name.lower() in known:
        return known.index(name.lower())
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"The classes are {', '.join(known)}."
    raise UserError(f"no class '{name}'. {hint}")


def _next(stream: Iterator[FramePredictions]) -> FramePredictions:
    """The predictions of the next frame; the model raises ValueError for frames that it cannot process."""
    try:
        return next(stream)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_model(model: nn.Module) -> None:
    """Checks the settings that no constructor checks, and processes a small black frame.

    Raises:
        UserError: if a setting is invalid, or the model fails.
    """
    size = getattr(model, "test_size", None)
    if not (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(type(edge) is int and 0 < edge <= _MAX_TEST_EDGE for edge in size)
    ):
        raise UserError(f"model.test_size={size}: expected [short edge, long edge] in pixels")
    queries = getattr(getattr(model, "segmenter", None), "num_queries", None)
    embed = getattr(getattr(getattr(model, "tracker", None), "local_positions", None), "embed", None)
    if isinstance(embed, nn.Embedding) and queries not in (None, embed.num_embeddings):
        raise UserError(
            f"model.segmenter.num_queries={queries}: {queries} local queries, "
            f"but these weights have {embed.num_embeddings} position embeddings for them (l_pos)"
        )
    try:
        with torch.inference_mode():
            next(cast(StreamingModel, model.eval()).stream([torch.zeros(3, 128, 128, dtype=torch.uint8)]))
    except ValueError:
        return  # depends on the size of the frame, for example too many queries
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"this model cannot process a frame ({type(error).__name__}: {reason})") from error


def default_device() -> str:
    """The first GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(device: str | torch.device | None) -> torch.device:
    """Parses the name of a device; None selects the default.

    Raises:
        UserError: if the device is unknown or not available.
    """
    try:
        place = torch.device(device or default_device())
    except RuntimeError as error:
        raise UserError(f"device {device}: no such kind of device; use cuda, cuda:1 or cpu") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: torch sees {torch.cuda.device_count()} GPUs here; use cpu")
    try:
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"device {device}: this torch cannot compute on it; use cuda or cpu") from error
    return place


def find_weights(path: str | Path) -> Path:
    """Finds the weights of a run.

    Args:
        path: a weights file, which is returned as it is, or the folder of a run.

    Raises:
        UserError: if there are no weights.
    """
    place = Path(os.path.expanduser(path))  # `Path.expanduser` raises for an unknown user
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"{path}: no such weights; give a .pth or .safetensors file, or the folder of a run")
    # The marker has priority: model_final.pth may be left over from an earlier run in the same folder.
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
    """Iterates in a background thread, up to `ahead` items in advance.

    An exception is raised at the position of its item.  When the consumer stops, the thread closes the iterator.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="l2g-decode") as pool:
        pending = deque(pool.submit(next, iterator, _END) for _ in range(ahead))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, iterator, _END))
                yield cast(Item, item)
        finally:
            for future in pending:
                future.cancel()
            if isinstance(iterator, Generator):
                pool.submit(iterator.close).result()
