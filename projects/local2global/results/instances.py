"""From frame predictions to one video's result, in memory that does not grow with the video.

Masks go to a temporary file as run lengths the moment they are decoded; scores are kept as histograms.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ..errors import UserError
from ..structures import FramePredictions, FrameResult, VideoResult

BATCH_PIXELS = 1 << 20  # output pixels decoded at a time: bounds the memory of 100 masks at 720p
GPU_BATCH_PIXELS = 1 << 25  # a GPU's, which is waited for after each
SMALL_MASK = (
    1 << 16
)  # output pixels up to which a call per mask costs more than the empty area round the others

Item = TypeVar("Item")
Result = TypeVar("Result")


@functools.lru_cache(maxsize=16)  # the same two axes for every mask of a video
def _taps(outputs: int, extent: float, inputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear taps of one axis: the lower input pixel, the upper one and its weight, (outputs,) each.

    The centre of output pixel X lies at (X + .5) / outputs * extent - .5 in input pixels, held within the
    valid ones.
    """
    last = min(max(math.ceil(extent), 1), inputs) - 1
    centres = torch.arange(outputs, dtype=torch.float64) + 0.5
    position = (centres * (extent / outputs) - 0.5).clamp(0, last)
    low = position.floor().long()
    # whoever is given these finds them there, on whatever stream: sending them waits
    return low.to(device), (low + 1).clamp(max=last).to(device), (position - low).float().to(device)


def _span(occupied: Tensor, low: Tensor, high: Tensor) -> slice:
    """The output pixels that can be positive: those with a tap on an occupied (inputs,) line."""
    if occupied.is_cuda:  # all: computing them takes less than to wait for which they are
        return slice(0, len(low))
    reached = (occupied[low] | occupied[high]).nonzero()[:, 0]
    return slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)


def _decode(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """`decode_masks` column by column, (n, W, H): the order in which run lengths are counted."""
    count, height, width = logits.shape
    xs = _taps(size[1], extent[0], width, logits.device)
    ys = _taps(size[0], extent[1], height, logits.device)
    valid = logits[:, : int(ys[1][-1]) + 1, : int(xs[1][-1]) + 1].float().transpose(1, 2).contiguous()
    out = torch.zeros((count, size[1], size[0]), dtype=torch.bool, device=logits.device)
    together = max(1, count) if logits.is_cuda or size[0] * size[1] <= SMALL_MASK else 1
    for start in range(0, count, together):
        some = valid[start : start + together]
        highest = some.amax(0)
        x, y = _span(highest.amax(1) > 0, *xs[:2]), _span(highest.amax(0) > 0, *ys[:2])
        if x.start == x.stop or y.start == y.stop:
            continue
        low, high, weight = (tap[y] for tap in ys)
        # Rows first, while there are few columns.
        tall = some.index_select(2, low).lerp_(some.index_select(2, high), weight)
        low, high, weight = (tap[x] for tap in xs)
        full = tall.index_select(1, low).lerp_(tall.index_select(1, high), weight[:, None])
        torch.gt(full, 0, out=out[start : start + together, x, y])
    return out


def decode_masks(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Mask logits straight to the source's size, bilinearly (`align_corners=False`), and cut at 0.

    Args:
        logits: (n, h, w); what lies beyond `extent` is padding and is never looked at.
        extent: (width, height) of the unpadded frame in mask pixels.
        size: (H, W) of the output.

    Returns:
        (n, H, W) bool.  Only the neighbourhood of positive logits is computed.
    """
    return _decode(logits, extent, size).transpose(1, 2)


def resize_logits(logits: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Mask logits at the source's size; `decode_masks` before the cut.

    Args:
        logits: (n, h, w) float32.
        extent: (width, height) of the unpadded frame in mask pixels.
        size: (H, W) of the output.

    Returns:
        (n, H, W) float32.
    """
    height, width = logits.shape[1:]
    low, high, weight = _taps(size[0], extent[1], height, logits.device)
    tall = logits.index_select(1, low).lerp_(logits.index_select(1, high), weight[:, None])
    low, high, weight = _taps(size[1], extent[0], width, logits.device)
    return tall.index_select(2, low).lerp_(tall.index_select(2, high), weight)


def encode(mask: Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    """An (H, W) bool mask as a compressed COCO RLE {"size": [H, W], "counts": str}."""
    array = np.asfortranarray(np.asarray(mask), dtype=np.uint8)
    rle = coco_mask.encode(array)
    return {"size": list(array.shape), "counts": rle["counts"].decode("ascii")}


def _encode_columns(masks: Tensor) -> list[str]:
    """The counts of (n, W, H) bool masks on the CPU, without copying them."""
    columns = masks.numpy().view(np.uint8).transpose(2, 1, 0)
    return [rle["counts"].decode("ascii") for rle in coco_mask.encode(columns)]


def _on_host(x: Tensor) -> Tensor:
    """A tensor on the CPU when its values are there; of a GPU, through memory that it can write to by itself."""
    if not x.is_cuda:
        return x.cpu()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return host


def one_behind(
    items: Iterable[Item], take: Callable[[Item], Result], device: torch.device
) -> Generator[Result, None, None]:
    """What `take` makes of each item, in order; on a GPU, of one while the device is at work on the next.

    Args:
        items: asked for on the device's current stream.
        take: waits for what it has asked the device to do, as `VideoPostprocessor.update`; it works on a stream of its
            own, where it waits for nothing else.
        device: where the items are made.
    """
    if device.type == "cpu":
        yield from map(take, items)
        return
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: list[tuple[Item, torch.cuda.Event]] = []

    def taken() -> Result:
        item, made = waiting.pop()
        aside.wait_event(made)
        with torch.cuda.stream(aside):
            return take(item)

    source = iter(items)
    while True:
        try:
            item = next(source)
        except Exception as end:  # or an error in the next one: the last one is whole all the same
            if waiting:
                yield taken()
            if isinstance(end, StopIteration):
                return
            raise
        made = torch.cuda.Event()  # type: ignore[no-untyped-call]
        made.record(torch.cuda.current_stream(device))
        waiting.insert(0, (item, made))
        if len(waiting) > 1:
            yield taken()


class Spill:
    """Masks by slot and frame in a temporary file, so that a video of any length fits.

    The file is SQLite's private temporary database: it has no name from the start, lies in the system's
    folder for temporary files (TMPDIR), and is gone with the process however that ends.
    """

    def __init__(self, cache_mib: int = 8) -> None:
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (
            "page_size=16384",  # a large mask's counts fit into one page
            f"cache_size={-1024 * cache_mib}",
            "journal_mode=OFF",
            "synchronous=OFF",
        ):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute(
            "CREATE TABLE masks (slot INTEGER, frame INTEGER, counts TEXT, PRIMARY KEY (slot, frame)) "
            "WITHOUT ROWID"
        )
        # One transaction for good: nothing is ever rolled back, and pages leave only when the cache is full.
        self._connection.execute("BEGIN")

    def write(self, frame: int, counts: Mapping[int, str]) -> None:
        """Adds the masks of one frame, by slot."""
        rows = [(slot, frame, text) for slot, text in counts.items()]
        self._connection.executemany("INSERT INTO masks VALUES (?, ?, ?)", rows)

    def read(self, slot: int) -> Iterator[tuple[int, str]]:
        """The frames and masks of one slot, by rising frame, one at a time."""
        query = "SELECT frame, counts FROM masks WHERE slot = ? ORDER BY frame"
        yield from self._connection.execute(query, (slot,))

    def close(self) -> None:
        """Deletes the file; may be called twice."""
        self._connection.close()


class ScoreHistogram:
    """The scores of every slot and class over a video of any length, in constant memory.

    Args:
        queries: N slots.
        classes: K classes.
        bins: equal bins of [0, 1]; a top mean is exact to within one of them.
        device: where the scores come from.
    """

    def __init__(
        self, queries: int, classes: int, bins: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        self.bins = bins
        self.frames = 0
        self.max = torch.zeros((queries, classes), device=device)
        self.total = torch.zeros((queries, classes), dtype=torch.float64, device=device)
        self._counts = torch.zeros((queries, classes, bins), dtype=torch.int32, device=device)
        self._sums = torch.zeros((queries, classes, bins), dtype=torch.float64, device=device)

    def add(self, scores: Tensor) -> None:
        """Counts one frame's (N, K) scores in [0, 1]."""
        index = (scores * self.bins).long().clamp(0, self.bins - 1)[..., None]
        self._counts.scatter_add_(2, index, torch.ones_like(index, dtype=torch.int32))
        self._sums.scatter_add_(2, index, scores.double()[..., None])
        self.max = torch.maximum(self.max, scores)
        self.total += scores
        self.frames += 1

    def mean(self) -> Tensor:
        """(N, K) mean over the frames."""
        return self.total / max(1, self.frames)

    def top_mean(self, count: int) -> Tensor:
        """(N, K) mean of the `count` largest: whole bins from the top, of the last one its mean."""
        counts = self._counts.flip(-1).double()
        sums = self._sums.flip(-1)
        before = counts.cumsum(-1) - counts
        taken = torch.minimum((count - before).clamp(min=0), counts)
        return (taken * sums / counts.clamp(min=1)).sum(-1) / max(1, count)


Aggregate = Literal["top_quarter", "max", "mean"]


class VideoPostprocessor:
    """Takes the frames of one video in order and reports objects frame by frame, then tracks.

    Args:
        size: (height, width) of the source, in which masks are reported.
        threshold: a frame reports the slots whose best class score is at least this.
        aggregate: how a slot's class scores become the video's: the mean of the best max(1, T // 4), the
            best, or the mean of all.
        keep: the most (slot, class) pairs of a video's result.
        spill: whether masks are kept for `result`; False opens no file and decodes reported masks only.

    Raises:
        UserError: `aggregate` is none of these.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        threshold: float = 0.3,
        aggregate: Aggregate = "top_quarter",
        keep: int = 50,
        spill: bool = True,
    ) -> None:
        if aggregate not in ("top_quarter", "max", "mean"):
            raise UserError(f"aggregate: expected top_quarter, max or mean, got {aggregate!r}")
        self.size = (int(size[0]), int(size[1]))
        self.threshold = threshold
        self.aggregate = aggregate
        self.keep = keep
        self.length = 0
        self._spill = Spill() if spill else None
        self._scores: ScoreHistogram | None = None
        self._foreground = self._pixels = self._seen = torch.zeros(0)

    def __enter__(self) -> VideoPostprocessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the masks; results of this video can no longer be read."""
        if self._spill is not None:
            self._spill.close()

    def update(self, predictions: FramePredictions) -> FrameResult:
        """Takes the next frame's predictions of one video (B = 1) and reports the objects on it, on the CPU.

        Raises:
            ValueError: the predictions are of more than one video.
        """
        if len(predictions.logits) != 1:
            raise ValueError(f"expected the predictions of one video, got {len(predictions.logits)}")
        masks = predictions.masks[0].float()
        scores = predictions.logits[0].detach().float().sigmoid()
        histogram = self._start(scores) if self._scores is None else self._scores
        histogram.add(scores)
        area = self._add_foreground(masks)
        # all that the host asks of the device before it asks for masks, in one piece
        slots = torch.stack((area > 0, scores.amax(1), histogram.total.argmax(1)), dim=1)
        boxes, extent = predictions.boxes[0].detach(), predictions.extent[0].expand(len(slots), 2)
        told = _on_host(torch.cat((slots.float(), boxes.float(), extent.float()), dim=1))
        alive, best, labels = told[:, 0] > 0, told[:, 1], told[:, 2].long()
        reported = ((best >= self.threshold) & alive).nonzero()[:, 0]
        wanted = reported if self._spill is None else alive.nonzero()[:, 0]
        width, height = told[0, 7:].tolist()
        shown, decoded = self._decode(masks, wanted, reported, (width, height))
        index, self.length = self.length, self.length + 1
        ids = torch.tensor(shown, dtype=torch.int64)
        return FrameResult(index, ids, labels[ids], best[ids], decoded, told[ids, 3:7])

    def _start(self, scores: Tensor) -> ScoreHistogram:
        queries, classes = scores.shape
        self._scores = ScoreHistogram(queries, classes, device=scores.device)
        self._foreground = torch.zeros(queries, dtype=torch.float64, device=scores.device)
        self._pixels = torch.zeros_like(self._foreground)
        self._seen = torch.zeros(queries, dtype=torch.bool)
        return self._scores

    def _add_foreground(self, masks: Tensor) -> Tensor:
        """Sums the probabilities of the positive pixels; returns how many each slot has, (N,)."""
        positive = masks > 0
        area = positive.sum((1, 2))
        # All pixels: picking the positive ones costs more than their neighbours' exponentials, and waits for a GPU.
        self._foreground += torch.where(positive, masks.sigmoid(), 0.0).sum((1, 2), dtype=torch.float64)
        self._pixels += area
        return area

    def _decode(
        self, masks: Tensor, wanted: Tensor, reported: Tensor, extent: tuple[float, float]
    ) -> tuple[list[int], Tensor]:
        """Decodes and spills the wanted slots, a few at a time; returns the reported ones with a pixel."""
        report = set(reported.tolist())
        shown: list[int] = []
        kept: list[Tensor] = []
        counts: dict[int, str] = {}
        pixels = GPU_BATCH_PIXELS if masks.is_cuda else BATCH_PIXELS
        for slots in torch.split(wanted, max(1, pixels // (self.size[0] * self.size[1]))):
            decoded = _on_host(_decode(masks[slots], extent, self.size))
            filled = torch.from_numpy(decoded.flatten(1).numpy().any(1))
            decoded, names = decoded[filled], slots[filled].tolist()
            if self._spill is not None and names:
                counts.update(zip(names, _encode_columns(decoded), strict=True))
            rows = [row for row, slot in enumerate(names) if slot in report]
            shown += [names[row] for row in rows]
            kept.append(decoded[rows])
        if self._spill is not None:
            self._spill.write(self.length, counts)
            self._seen[list(counts)] = True
        width_first = torch.cat(kept) if kept else torch.zeros((0, *self.size[::-1]), dtype=torch.bool)
        return shown, width_first.transpose(1, 2)

    def _video_scores(self, scores: ScoreHistogram) -> Tensor:
        """(N, K) on the CPU: the aggregated class score times the mean probability of the mask's pixels."""
        if self.aggregate == "max":
            classes = scores.max.double()
        elif self.aggregate == "mean":
            classes = scores.mean()
        else:
            classes = scores.top_mean(max(1, self.length // 4))
        certainty = self._foreground / self._pixels.clamp(min=1)
        return (classes * certainty[:, None]).cpu()

    def result(self, video_id: int) -> VideoResult:
        """The tracks of the frames so far; slots that never had a mask are dropped.

        The result's masks are read from this object's file: they can be read until `close`.

        Raises:
            ValueError: the masks were not kept (`spill=False`).
        """
        if self._spill is None:
            raise ValueError("a result needs the masks: make the VideoPostprocessor with spill=True")
        empty = torch.zeros(0, dtype=torch.int64)
        slots, labels, values = empty, empty, torch.zeros(0)
        if self._scores is not None:
            alive = self._seen.nonzero()[:, 0]
            scores = self._video_scores(self._scores)[alive]
            values, order = scores.flatten().sort(descending=True, stable=True)
            values, order = values[: self.keep].float(), order[: self.keep]
            slots, labels = alive[order // scores.shape[1]], order % scores.shape[1]
        return VideoResult(video_id, self.size, self.length, slots, labels, values, self._read)

    def _read(self, slot: int) -> Iterator[dict[str, Any] | None]:
        assert self._spill is not None
        frame = 0
        for found, counts in self._spill.read(slot):
            yield from itertools.repeat(None, found - frame)
            yield {"size": list(self.size), "counts": counts}
            frame = found + 1
        yield from itertools.repeat(None, self.length - frame)


def write_tracks(
    results: Iterable[VideoResult], classes: Sequence[Mapping[str, Any]], path: str | Path
) -> None:
    """Writes tracks as a YouTube-VIS results file, mask by mask, and puts it in place when it is whole.

    Args:
        results: the videos, taken one after the other.
        classes: {id, name} per label.
        path: a list of {video_id, category_id, score, segmentations} is written there.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            separator = "["
            for result in results:
                for index in range(len(result)):
                    head = {
                        "video_id": result.video_id,
                        "category_id": classes[int(result.labels[index])]["id"],
                        "score": float(result.scores[index]),
                    }
                    file.write(f'{separator}{json.dumps(head)[:-1]}, "segmentations": [')
                    for t, mask in enumerate(result.segmentations(index)):
                        file.write((", " if t else "") + json.dumps(mask))
                    file.write("]}")
                    separator = ",\n"
            file.write("[]\n" if separator == "[" else "]\n")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
