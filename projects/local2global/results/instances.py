"""Tracks of one video from its frame predictions: frame reports, masks in a temporary file, exact video scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..structures import FramePredictions, FrameResult, VideoResult
from .masks import decode_columns, encode_columns
from .spill import Spill

BATCH_PIXELS = 1 << 20  # output pixels decoded at a time; bounds the memory of 100 masks at 720p
GPU_BATCH_PIXELS = 1 << 25  # on a GPU, which is synchronised once per batch

Aggregate = Literal["top_quarter", "max", "mean"]
Narrow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N,) bool slots, (N,) best scores and (N,) labels to the (N,) bool subset that is reported."""


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU.  From a GPU it goes through pinned memory and synchronises the current stream only."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


class VideoPostprocessor:
    """Reports the objects of each frame of one video, then the video's tracks.

    Use it as a context manager, or call `close`, to delete the temporary file.

    Args:
        size: (height, width) of the source, the size of reported masks.
        threshold: a frame reports the slots whose best class score is at least this value.
        aggregate: the class scores of a slot over a video of T frames: "top_quarter" is the mean of the best
            max(1, T // 4) frames, "max" the best frame, "mean" the mean of all frames.
        keep: maximum number of (slot, class) pairs in a video's result.
        spill: whether masks and scores are written to a file for `result`.  With False only the masks of reported
            slots are decoded.
        given: the slots 0 to `given` - 1 belong to objects that the user named; they are reported with any score.

    Raises:
        UserError: unknown `aggregate`.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        threshold: float = 0.3,
        aggregate: Aggregate = "top_quarter",
        keep: int = 50,
        spill: bool = True,
        given: int = 0,
    ) -> None:
        if aggregate not in ("top_quarter", "max", "mean"):
            raise UserError(f"aggregate: expected top_quarter, max or mean, got {aggregate!r}")
        self.size = (int(size[0]), int(size[1]))
        self.threshold = threshold
        self.aggregate = aggregate
        self.keep = keep
        self.spill = spill
        self.given = given
        self.length = 0
        self._spill: Spill | None = None
        self._total = self._foreground = self._pixels = self._peak = torch.zeros(0)

    def __enter__(self) -> VideoPostprocessor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the temporary file; the masks of this video's results can no longer be read."""
        if self._spill is not None:
            self._spill.close()

    def update(self, predictions: FramePredictions, narrow: Narrow | None = None) -> FrameResult:
        """Processes the next frame.

        Args:
            predictions: predictions of one video's frame (B = 1).
            narrow: selects the slots that are reported, of those with a score and a mask.

        Returns:
            the objects on this frame, on the CPU.

        Raises:
            ValueError: the predictions have B > 1.
            UserError: the temporary file cannot be written.
        """
        if len(predictions.logits) != 1:
            raise ValueError(f"expected the predictions of one video, got {len(predictions.logits)}")
        masks = predictions.masks[0].float()
        scores, boxes, extent, foreground, area = self._fetch(predictions, masks)
        if not self.length:
            self._start(*scores.shape)
        self._total = self._total + scores  # new tensors: `state` hands out the old ones
        self._foreground += foreground
        self._pixels += area
        best, labels = scores.amax(1), self._total.argmax(1)
        self._peak = torch.where(area > 0, best, 0.0).maximum(self._peak)
        reported = ((best >= self.threshold) | (torch.arange(len(best)) < self.given)) & (area > 0)
        if narrow is not None:
            reported = narrow(reported, best, labels)
        decoded = reported if self._spill is None else area > 0
        ids, shown = self._decode(masks, decoded, reported, extent, scores)
        index, self.length = self.length, self.length + 1
        return FrameResult(index, ids, labels[ids], best[ids], shown, boxes[ids])

    def best_score(self, labels: Collection[int] | None = None) -> float:
        """Highest score of any slot on a frame where it has a mask, reported or not; 0 without any.

        Args:
            labels: only slots with one of these labels; None for all.
        """
        peak = self._peak
        if labels is not None and self.length:
            peak = peak[torch.isin(self._total.argmax(1), torch.tensor(sorted(labels), dtype=torch.int64))]
        return float(peak.max()) if len(peak) else 0.0

    def state(self) -> dict[str, Tensor]:
        """What later frames depend on, as tensors that they do not change.

        `length` (), `total` (N, K) of class scores, and `peak` (N,), the highest score of each slot.

        Raises:
            ValueError: the postprocessor was created with `spill=True`; its file is no part of the state.
        """
        if self.spill:
            raise ValueError("`state` requires spill=False")
        return {"length": torch.tensor(self.length), "total": self._total, "peak": self._peak}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues after the frames at which `state` was taken.

        Raises:
            KeyError: a key is missing.
            ValueError: `total` is not a matrix of float64, or the postprocessor was created with `spill=True`.
        """
        if self.spill:
            raise ValueError("`load_state` requires spill=False")
        length, total = int(state["length"]), state["total"]
        if length and (total.dim() != 2 or total.dtype != torch.float64):
            raise ValueError(f"total: expected (slots, classes) float64, got {tuple(total.shape)}")
        self._start(*(total.shape if length else (0, 0)))
        self.length, self._total, self._peak = length, total, state["peak"]

    @staticmethod
    def _fetch(
        predictions: FramePredictions, masks: Tensor
    ) -> tuple[Tensor, Tensor, tuple[float, float], Tensor, Tensor]:
        """Scores, boxes and mask statistics, copied to the CPU in one transfer.

        Returns:
            (N, K) float32 scores, (N, 4) float32 boxes, the extent, (N,) float64 sum of the probabilities of each
            mask's positive pixels, (N,) float64 number of these pixels.
        """
        positive = masks > 0
        # All sigmoids are computed: selecting the positive pixels costs more, and would synchronise a GPU.
        foreground = torch.where(positive, masks.sigmoid(), 0.0).sum((1, 2), dtype=torch.float64)
        scores = predictions.logits[0].detach().float().sigmoid()
        columns = (
            scores,
            predictions.boxes[0].detach(),
            predictions.extent[0].expand(len(scores), 2),
            foreground[:, None],
            positive.sum((1, 2))[:, None],
        )
        host = _to_host(torch.cat([column.double() for column in columns], dim=1))
        scores, boxes, extent, foreground, area = torch.split(host, [scores.shape[1], 4, 2, 1, 1], dim=1)
        width, height = extent[0].tolist()
        return scores.float(), boxes.float(), (width, height), foreground[:, 0], area[:, 0]

    def _start(self, queries: int, classes: int) -> None:
        self._total = torch.zeros((queries, classes), dtype=torch.float64)
        self._foreground = torch.zeros(queries, dtype=torch.float64)
        self._pixels = torch.zeros(queries, dtype=torch.float64)
        self._peak = torch.zeros(queries)
        if self.spill:
            self._spill = Spill(queries, classes)

    def _decode(
        self, masks: Tensor, decoded: Tensor, reported: Tensor, extent: tuple[float, float], scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decodes masks in batches and writes them to the file.

        Args:
            masks: (N, h, w) mask logits.
            decoded: (N,) bool, slots whose masks are decoded.
            reported: (N,) bool, the subset that is returned.
            extent: (width, height) of the unpadded frame in mask pixels.
            scores: (N, K) class scores, written beside the masks.

        Returns:
            (n,) int64 reported slots whose mask has a pixel at the source's size, and their (n, H, W) bool masks.
        """
        ids: list[Tensor] = [torch.zeros(0, dtype=torch.int64)]
        shown: list[Tensor] = [torch.zeros((0, *self.size[::-1]), dtype=torch.bool)]
        counts: dict[int, str] = {}
        pixels = GPU_BATCH_PIXELS if masks.is_cuda else BATCH_PIXELS
        for slots in torch.split(decoded.nonzero()[:, 0], max(1, pixels // (self.size[0] * self.size[1]))):
            columns = _to_host(decode_columns(masks[slots], extent, self.size))
            filled = torch.from_numpy(columns.flatten(1).numpy().any(1))
            columns, slots = columns[filled], slots[filled]
            if self._spill is not None and len(slots):
                counts.update(zip(slots.tolist(), encode_columns(columns), strict=True))
            ids.append(slots[reported[slots]])
            shown.append(columns[reported[slots]])
        if self._spill is not None:
            self._spill.append(scores.numpy(), counts)
        return torch.cat(ids), torch.cat(shown).transpose(1, 2)

    def result(self, video_id: int) -> VideoResult:
        """The tracks of all frames so far.  Slots without a mask on any frame are dropped.

        The score of a (slot, class) pair is its aggregated class score times the mean probability of the mask's pixels.
        Masks are read from the temporary file, until `close`.

        Raises:
            ValueError: the postprocessor was created with `spill=False`.
        """
        if not self.spill:
            raise ValueError("`result` requires spill=True")
        slots = labels = torch.zeros(0, dtype=torch.int64)
        values = torch.zeros(0)
        if self._spill is not None:
            count = {"top_quarter": max(1, self.length // 4), "max": 1, "mean": self.length}[self.aggregate]
            certainty = self._foreground / self._pixels.clamp(min=1)
            candidates = torch.from_numpy(self._spill.masked).nonzero()[:, 0]
            scores = (torch.from_numpy(self._spill.top_mean(count)) * certainty[:, None])[candidates]
            values, order = scores.flatten().sort(descending=True, stable=True)
            values, order = values[: self.keep].float(), order[: self.keep]
            slots, labels = candidates[order // scores.shape[1]], order % scores.shape[1]
        return VideoResult(video_id, self.size, self.length, slots, labels, values, self._read)

    def _read(self, slot: int) -> Iterator[dict[str, Any] | None]:
        """The masks of one slot, frame by frame, as compressed COCO RLEs."""
        assert self._spill is not None
        for counts in self._spill.read(slot):
            yield None if counts is None else {"size": list(self.size), "counts": counts}
