"""`Stream`: one video, segmented frame by frame.  Its whole state is a dict of tensors.

    stream = model.start((720, 1280))
    result = stream.step(frame)
    torch.save(stream.state(), "state.pt")      # later: stream.load_state(torch.load("state.pt"))

Several streams may share a model, also in threads: a lock lets the model process one frame at a time.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..data.augment import resize_shortest_edge
from ..errors import UserError
from ..results.instances import VideoPostprocessor
from ..structures import FramePredictions, FrameResult, Queries
from .source import Frame, to_frame

_PATIENCE = (
    5.0  # seconds until a thread that does not stop, such as the reader of a stalled camera, is abandoned
)
_SLOTS = "slots."

Item = TypeVar("Item")


class StreamingModel(Protocol):
    """The attributes of an `nn.Module` that streams use."""

    classes: Sequence[dict[str, Any]]
    test_size: tuple[int, int]
    threshold: float

    def stream(
        self, frames: Iterable[Tensor], past: Queries | None = None, objects: Tensor | None = None
    ) -> Iterator[FramePredictions]:
        """Yields the predictions of frame t before frame t + 1 is read."""


class Stream:
    """Segments the frames of one video, one per call.

    Args:
        model: in evaluation mode.
        device: of the model.
        lock: held while the model processes a frame.
        size: (height, width) of the frames.
        report: selects the reported objects.
        objects: masks (M, H, W) bool or boxes (M, 4) of objects on the first frame; they have the ids 0 to M - 1.
    """

    def __init__(
        self,
        model: StreamingModel,
        device: torch.device,
        lock: threading.Lock,
        size: tuple[int, int],
        report: Filter,
        objects: Tensor | None = None,
    ) -> None:
        """The state before the first frame."""
        self.size = (int(size[0]), int(size[1]))
        self._model, self._device, self._lock, self.report = model, device, lock, report
        self._class_names = tuple(str(entry["name"]) for entry in model.classes)
        self._slots: Queries | None = None
        self._objects = None if objects is None else objects.cpu()
        self._post = VideoPostprocessor(
            self.size, threshold=report.threshold, spill=False, given=report.given
        )

    @property
    def options(self) -> str:
        """What determines the results besides the model and the frames, as text."""
        if self._objects is None:
            return repr(self.report)
        objects = hashlib.sha256(self._objects.contiguous().numpy().tobytes()).hexdigest()
        return f"{self.report!r}, objects {objects}"

    @property
    def length(self) -> int:
        """Number of frames done."""
        return self._post.length

    @torch.inference_mode()
    def step(self, frame: Frame, bgr: bool = False) -> FrameResult:
        """Segments the next frame.

        Args:
            frame: of the stream's size: a (3, H, W) uint8 tensor, an (H, W, 3) uint8 array or a Pillow image.
            bgr: the channels of tensors and arrays are in the order blue, green, red, as OpenCV reads them.

        Returns:
            the reported objects, with masks of the size of the frame.

        Raises:
            UserError: if the frame has another size, or the model cannot process it.
        """
        frame = to_frame(frame, bgr)
        if tuple(frame.shape) != (3, *self.size):
            height, width = self.size
            raise UserError(
                f"frame {self._post.length}: shape {tuple(frame.shape)}, expected (3, {height}, {width})"
            )
        resized = resize_shortest_edge(frame, *self._model.test_size)
        first = {} if self._objects is None or self._slots is not None else {"objects": self._objects}
        try:
            with self._lock:
                predictions = next(iter(self._model.stream([resized], self._slots, **first)))
        except ValueError as error:
            raise UserError(str(error)) from error
        self._slots = predictions.queries
        result = self._post.update(predictions, self.report.narrow)
        if first and self._objects is not None and self._objects.dtype == torch.bool:
            result = _with_masks(result, self._objects)
        return dataclasses.replace(result, class_names=self._class_names)

    def select(
        self,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_objects: int | None = None,
    ) -> None:
        """Changes which objects the next frames report; identities stay.

        Args:
            threshold: minimal score; default: the model's.
            classes: names; default: all.
            max_objects: maximal number of objects per frame.

        Raises:
            UserError: if a class name is unknown.
        """
        given, only = self.report.given, self.report.only_given
        self.report = Filter.of(self._model, threshold, classes, max_objects, given, only)
        self._post.threshold = self.report.threshold

    @property
    def best_score(self) -> float:
        """Highest score so far of an object of the selected classes, reported or not."""
        return self._post.best_score(self.report.labels)

    def state(self) -> dict[str, Tensor]:
        """The state after the last frame: the slots, the number of frames and the sums of the class scores.

        Later steps do not change these tensors.
        """
        slots = {} if self._slots is None else vars(self._slots)
        return {**self._post.state(), **{_SLOTS + name: value for name, value in slots.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues after the frame at which `state` was taken, with the same ids.

        Args:
            state: of a stream of the same model.

        Raises:
            UserError: if tensors are missing, or the state belongs to a model with another number of classes.
        """
        slots = {
            key.removeprefix(_SLOTS): value.to(self._device)
            for key, value in state.items()
            if key.startswith(_SLOTS)
        }
        try:
            if slots and state["total"].shape[-1] != len(self._model.classes):
                raise ValueError(
                    f"{state['total'].shape[-1]} classes, the model has {len(self._model.classes)}"
                )
            self._post.load_state(state)
            self._slots = _queries(slots) if slots else None
        except (KeyError, ValueError) as error:
            raise UserError(f"this is not the state of a stream of this model ({error})") from error


def _with_masks(result: FrameResult, objects: Tensor) -> FrameResult:
    """The result with the masks (M, height, width) of the ids 0 to M - 1; the model knows them at stride 4 only."""
    masks = result.masks.clone()
    given = result.ids < len(objects)
    masks[given] = objects[result.ids[given]]
    return dataclasses.replace(result, masks=masks)


def _queries(tensors: dict[str, Tensor]) -> Queries:
    """Slots of the kind that has these fields: a tracker may carry more than `Queries`."""
    kinds: list[type[Queries]] = [Queries, *Queries.__subclasses__()]
    for kind in kinds:
        if {field.name for field in dataclasses.fields(kind)} == tensors.keys():
            return kind(**tensors)
    raise ValueError(f"unknown slots: {', '.join(sorted(tensors))}")


@dataclasses.dataclass(frozen=True)
class Filter:
    """Selects the reported objects of a frame: by score, label and number.

    Attributes:
        threshold: minimal score, which the post-processor applies.
        labels: reported labels; None: all.
        max_objects: maximal number of objects.
        given: the ids below it belong to objects that the user named; they are always reported.
        only_given: report no other object.
    """

    threshold: float
    labels: frozenset[int] | None
    max_objects: int | None
    given: int = 0
    only_given: bool = False

    @classmethod
    def of(
        cls,
        model: StreamingModel,
        threshold: float | None,
        names: Sequence[str] | None,
        max_objects: int | None,
        given: int = 0,
        only_given: bool = False,
    ) -> Filter:
        """The filter for class names; without a threshold, the model's.

        Raises:
            UserError: if a class name is unknown.
        """
        labels = None if names is None else frozenset(_label(model.classes, name) for name in names)
        threshold = model.threshold if threshold is None else threshold
        return cls(threshold, labels, max_objects, given, only_given)

    def narrow(self, reported: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Filters by label and number, before masks are decoded; the post-processor applied the threshold.

        Args:
            reported: (N,) bool, slots.
            scores: (N,) best class scores.
            labels: (N,) int64 class labels.

        Returns:
            (N,) bool, the subset that stays.
        """
        named, others = reported.clone(), reported.clone()
        named[self.given :] = False
        others[: None if self.only_given else self.given] = False
        if self.labels is not None:
            others &= torch.isin(labels, torch.tensor(sorted(self.labels), dtype=torch.int64))
        if self.max_objects is not None:
            room = max(0, self.max_objects - int(named.sum()))
            ranked = torch.where(others, scores, -1.0).argsort(descending=True, stable=True)
            others[ranked[room:]] = False
        return named | others


def _label(classes: Sequence[dict[str, Any]], name: str) -> int:
    known = [str(c["name"]).lower() for c in classes]
    if name.lower() in known:
        return known.index(name.lower())
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"The classes are {', '.join(known)}."
    raise UserError(f"no class '{name}'. {hint}")


def prefetch(items: Iterable[Item], ahead: int, name: str = "l2g-decode") -> Generator[Item, None, None]:
    """Iterates in a background thread, up to `ahead` items in advance.

    An exception is raised at the position of its item.  When the consumer stops, the thread closes the iterator.

    Args:
        items: the iterable; the thread alone uses it.
        ahead: maximal number of items that wait for the consumer.
        name: of the thread.
    """
    waiting: deque[Item] = deque()
    return _in_thread(items, waiting, lambda: len(waiting) < ahead, name)


def latest(items: Iterable[Item], name: str = "l2g-decode") -> Generator[Item, None, None]:
    """Iterates in a background thread at the speed of the iterable, and yields the newest item.

    Items that come while the consumer is busy are dropped, all but the last.

    Args:
        items: the iterable; the thread alone uses it.
        name: of the thread.
    """
    return _in_thread(items, deque(maxlen=1), lambda: True, name)


def _in_thread(
    items: Iterable[Item], waiting: deque[Item], is_free: Callable[[], bool], name: str
) -> Generator[Item, None, None]:
    """Moves items through `waiting` from a background thread, which reads an item whenever `is_free`."""
    changed, stopped = threading.Condition(), False
    ended: list[BaseException | None] = []

    def read() -> None:
        iterator, error = iter(items), None
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: stopped or is_free())
                    if stopped:
                        break
                item = next(iterator)
                with changed:
                    waiting.append(item)
                    changed.notify_all()
        except StopIteration:
            pass
        except BaseException as caught:
            error = caught
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
            with changed:
                ended.append(error)
                changed.notify_all()

    thread = threading.Thread(target=read, name=name, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item = waiting.popleft()
                changed.notify_all()
            yield item
        if ended[0] is not None:
            raise ended[0]
    finally:
        with changed:
            stopped = True
            changed.notify_all()
        thread.join(_PATIENCE)
