"""`L2G`: a trained model that streams any source, and writes annotated videos and tracks.

    model = L2G.from_pretrained("output/run")
    for frame in model.stream("video.mp4"):
        frame.ids, frame.labels, frame.scores, frame.masks

Memory is constant in the length of the video: frames are decoded one by one, results are written frame by frame.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from .. import __version__
from ..engine.settings import build
from ..errors import UserError, first_line
from ..lazy import apply_overrides, load_resolved
from ..results.exports import check_exports
from ..results.record import RecordWriter, read_results
from ..structures import FrameResult
from ..weights.checkpoint import evaluation_state, find_config, load_checkpoint, load_weights, read_state
from ..weights.find import find_weights
from .checkpoint import Checkpoint, check_run, fingerprint
from .convert import image_config, known_variants
from .draw import Look, draw
from .result_folder import Prediction, finish, new_folder, open_record, read_about
from .source import Frame, Source, check_name, to_frame
from .stream import Filter, Stream, StreamingModel, latest, prefetch
from .video import open_source, open_writer

_DECODED = 4  # decoded frames ahead of the model: hides decoding, uses little memory
_SEGMENTED = 2  # segmented frames ahead of drawing and encoding
_MAX_TEST_EDGE = 16384  # pixels

Progress = Callable[[int, int | None, int], None]


class L2G:
    """A model for inference.

    Args:
        model: an `nn.Module` with the attributes of `StreamingModel`; it is switched to evaluation mode.
        device: default: the first GPU, or the CPU without a GPU.

    Attributes:
        weights: the file that the weights come from; None if they come from elsewhere.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        """Moves the model to the device."""
        self.device = choose_device(device)
        self._module = model.to(self.device).eval()
        self.weights: Path | None = None
        self._lock = threading.Lock()  # several threads may stream: the model processes one frame at a time

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()
    ) -> L2G:
        """Builds the model of a run and loads its weights.

        Args:
            path: a .pth, .pkl or .safetensors file, the folder of a run, a name such as "maskdino-r50", an https
                address, or a repository of the Hugging Face Hub (`find_weights`).  The config.yaml beside the weights
                describes the model.  MaskDINO checkpoints need no config: their queries are linked by the image
                tracker.
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
        load_weights(model, content, source=str(weights))
        _check_model(model)
        loaded = cls(model, place)
        loaded.weights = weights
        return loaded

    @property
    def classes(self) -> list[dict[str, Any]]:
        """{id, name} of every class; label k of a result is the k-th."""
        return list(self._model.classes)

    @property
    def threshold(self) -> float:
        """The default minimal score of reported objects."""
        return self._model.threshold

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the structure and the weights of the model."""
        return fingerprint(self._module)

    @property
    def caveat(self) -> str | None:
        """A limitation of the model's identities, in one line, or None."""
        return getattr(getattr(self._module, "tracker", None), "caveat", None)

    def _made(self) -> dict[str, str]:
        """Facts for a reader of stream.json: model, weights, version, and command line without passwords."""
        count = sum(parameter.numel() for parameter in self._module.parameters())
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return {
            "model": f"{type(self._module).__name__}, {count:,} parameters, {len(self.classes)} classes",
            **({} if self.weights is None else {"weights": str(self.weights)}),
            "command": re.sub(r"://[^/@\s]+@", "://", command),
            "version": __version__,
        }

    @property
    def module(self) -> StreamingModel:
        """The model, an `nn.Module` in evaluation mode."""
        return self._model

    @property
    def _model(self) -> StreamingModel:
        return cast(StreamingModel, self._module)

    def start(
        self,
        size: tuple[int, int],
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
        objects: Tensor | None = None,
        only_objects: bool = False,
    ) -> Stream:
        """A stream before its first frame: `step` takes one frame at a time, `state` can be saved.

        Args:
            size: (height, width) of the frames.
            threshold: minimal score of reported objects; default: the model's.
            classes: names of the reported classes; default: all.
            max_objects: maximal number of objects per frame; the best are reported.
            objects: objects of the first frame: masks (M, H, W) bool, which are reported as they are, or boxes (M, 4)
                (cx, cy, w, h) in [0, 1].  Object i has the id i and is reported with any score.
            only_objects: report no other objects.

        Raises:
            UserError: if a class name is unknown, or `objects` are neither masks of the frames' size nor boxes.
        """
        given = 0 if objects is None else len(check_objects(objects, size))
        report = Filter.of(self._model, threshold, classes, max_objects, given, only_objects)
        return Stream(self._model, self.device, self._lock, size, report, objects)

    def stream(
        self,
        source: str | Path | Source | Iterable[Frame],
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
        objects: Tensor | None = None,
        only_objects: bool = False,
        bgr: bool = False,
    ) -> Iterator[FrameResult]:
        """Segments a video online: the result for frame t is emitted before frame t + 1 is needed.

        Args:
            source: a path for `open_source`, decoded ahead in a thread; or an iterable of frames of one
                size, such as a camera, from which each frame is read only when its result is requested.  A frame is a
                (3, H, W) uint8 tensor, an (H, W, 3) uint8 array or a Pillow image, in RGB.
            threshold: minimal score of reported objects; default: the model's.
            classes: names of the reported classes; default: all.
            max_objects: maximal number of objects per frame; the best are reported.
            objects: objects of the first frame, masks or boxes; see `start`.
            only_objects: report no other objects.
            bgr: the channels of tensors and arrays are in the order blue, green, red, as OpenCV reads them.

        Yields:
            one result per frame, with masks of the size of the source.

        Raises:
            UserError: if the source cannot be read, a class name is unknown, or `objects` do not fit the frames.
        """
        start = partial(
            self.start,
            threshold=threshold,
            classes=classes,
            max_objects=max_objects,
            objects=objects,
            only_objects=only_objects,
        )
        if isinstance(source, (str, Path)):
            source = open_source(source)
        if isinstance(source, Source):
            return (result for _, _, result, _ in _segment(source, start(source.size)))
        Filter.of(
            self._model, threshold, classes, max_objects
        )  # a wrong class is an error before the first frame
        return _segment_frames((to_frame(frame, bgr) for frame in source), start)

    def predict(
        self,
        source: str | Path | Source,
        output_dir: str | Path,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
        progress: Progress | None = None,
        look: Look | None = None,
        resume: bool = False,
        save: Sequence[str] = (),
        objects: Tensor | None = None,
        only_objects: bool = False,
        lines: BinaryIO | None = None,
        watch: Callable[[Stream, Tensor, Tensor, FrameResult], None] | None = None,
    ) -> Prediction:
        """Writes the annotated video `<output_dir>/<name>/video.mp4` and, beside it, the reported objects.

        The video has the size, the time stamps and the sound of the source; a still image becomes `image.png`.
        `frames.jsonl` is the record: one line per frame, written while the video runs.  `annotations.json` and
        `results.json` are made from it in the YouTube-VIS forms of truth and of results.  Objects have masks on the
        frames on which they were reported; annotation id = drawn id + 1.

        After an interrupt or an exception the files hold the frames done so far; there are none before the first frame.
        An interrupt is the normal end of a live source.

        Args:
            source: a source, or a path for `open_source`.
            output_dir: created if missing; existing files are replaced.
            threshold: minimal score of drawn objects; default: the model's.
            classes: names of the drawn classes; default: all.
            max_objects: maximal number of drawn objects per frame; the best are drawn.
            progress: called after every frame with (frames done, number of frames or None, objects on the frame).
            look: what is drawn, and in which colours; default: masks, boxes and labels, coloured by identity.
            resume: continue an interrupted run; its frames are drawn again, but not segmented again.  The results are
                those of an uninterrupted run.  A complete folder keeps its results.
            save: optional formats, made from the record at the end: png, masks, coco, mot, mots, csv, crops.
            objects: objects of the first frame, masks or boxes; see `start`.
            only_objects: report no other objects.
            lines: a file to which each line of `frames.jsonl` is written too, such as standard output.
            watch: called after every frame with the stream, the frame and the drawn frame, (3, H, W) uint8 each, and
                the result.

        Raises:
            UserError: if the source cannot be read, a class name or a format is unknown, another process writes to
                the folder, or a run to be resumed had another source, other weights or other options.
        """
        start = time.perf_counter()
        save = check_exports(save)
        opened = source if isinstance(source, Source) else open_source(source)
        check_name(opened.name, opened.path or opened.name)
        if opened.identity is None and "crops" in save:
            raise UserError(
                f"{opened.name}: crops read the frames twice, but a camera or a pipe has them once"
            )
        stream = self.start(opened.size, threshold, classes, max_objects, objects, only_objects)
        folder = Path(output_dir) / opened.name
        checkpoint = Checkpoint(folder)
        run = {"source": opened.identity, "model": self.fingerprint, "options": stream.options}
        done = 0
        if resume and (folder / "stream.json").is_file():
            earlier_run = read_about(folder)
            check_run(folder, earlier_run.get("run"), run)
            save = check_exports([*earlier_run["save"], *save])
            state = checkpoint.read()
            if state is None:
                return finish(folder, save, opened)
            stream.load_state(state)
            done = stream.length
        checkpoint.state = stream.state()
        made = self._made() if opened.path is None else {"video": str(opened.path), **self._made()}
        facts = {"run": run, "made": made, "threshold": stream.report.threshold, "save": save}
        earlier = read_results(folder / "frames.jsonl", self.classes, opened.size, done)
        with (
            new_folder(folder),
            open_record(folder, opened, self.classes, facts, checkpoint, done, lines) as record,
            open_writer(folder, opened) as writer,
            _until_interrupt(opened.live, record),
            closing(prefetch(_segment(opened, stream, earlier), _SEGMENTED, "l2g-segment")) as results,
        ):
            begin = None
            for frame, time_stamp, result, state in results:
                begin = time_stamp if begin is None else begin
                with _uninterrupted():
                    if result.index == record.count:
                        result = record.append(result, time_stamp)
                        checkpoint.update(state)
                    drawn = draw(frame, result, self.classes, look)
                    writer.write(drawn, time_stamp - begin)
                if watch is not None:
                    watch(stream, frame, drawn, result)
                if progress is not None:
                    progress(writer.count, opened.length, len(result.ids))
        prediction = finish(folder, source=opened)
        seconds = time.perf_counter() - start
        return replace(
            prediction,
            seconds=seconds,
            announced=None if opened.live else opened.length,
            best_score=stream.best_score,
        )


@contextmanager
def _until_interrupt(live: bool, record: RecordWriter) -> Iterator[None]:
    """Ends the block at an interrupt if the source is live and a frame is done."""
    try:
        yield
    except KeyboardInterrupt:
        if not live or record.count == 0:
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delays an interrupt to the end of the block, so that all files hold the same frames."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.default_int_handler)
    if waiting:
        raise KeyboardInterrupt


def _segment(
    source: Source, stream: Stream, earlier: Iterable[FrameResult] = ()
) -> Iterator[tuple[Tensor, float, FrameResult, dict[str, Tensor]]]:
    """Every frame of a source, or the newest of a live one, with its time stamp, result and state.

    Args:
        source: the frames, decoded ahead.
        stream: its state is that after the frames of `earlier`.
        earlier: the results of the first frames.
    """
    known = iter(earlier)
    read = latest(source.read()) if source.live else prefetch(source.read(), _DECODED)
    with closing(read) as frames:
        for frame, time_stamp in frames:
            result = next(known, None) or stream.step(frame)
            yield frame, time_stamp, result, stream.state()


def _segment_frames(
    frames: Iterable[Tensor], start: Callable[[tuple[int, int]], Stream]
) -> Iterator[FrameResult]:
    """The results of frames that are read on demand; the first frame sets the size."""
    stream = None
    for frame in frames:
        stream = stream or start((frame.shape[1], frame.shape[2]))
        yield stream.step(frame)


def check_objects(objects: Tensor, size: tuple[int, int]) -> Tensor:
    """The given objects of a stream.

    Raises:
        UserError: if they are neither masks (M, height, width) bool nor boxes (M, 4) in [0, 1].
    """
    if objects.dtype == torch.bool and tuple(objects.shape[1:]) == tuple(size):
        return objects
    boxes = objects.is_floating_point() and objects.dim() == 2 and objects.shape[1] == 4
    if boxes and bool(((objects >= 0) & (objects <= 1)).all()):
        return objects
    raise UserError(
        f"objects: expected masks (M, {size[0]}, {size[1]}) bool or boxes (M, 4) in [0, 1], "
        f"got {tuple(objects.shape)} {objects.dtype}"
    )


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
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"this model cannot process a frame ({reason})") from error


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
