"""Local2Global, Eq. (1): q_t = D(q_{t-1}, E(f_t)).  One step per frame; the slot index is the identity of an object.

`step` processes one frame; `losses` and `stream` are loops around it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..boxes import mask_iou, mask_to_box
from ..errors import UserError
from ..results.instances import Aggregate, VideoPostprocessor
from ..structures import Clip, FrameFeatures, FramePredictions, PanopticVideo, Queries, VideoResult, constant
from .criterion import Criterion
from .matcher import assign
from .memory import RememberedQueries
from .ops.compiling import compile_parts
from .segmenter import Segmenter
from .tracker import LinkingTracker, StartingTracker, Tracker
from .variants import ImageTracker

#: ImageNet's statistics of RGB values in [0, 255].
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

#: Mask logit of the pixels of a given object.
CERTAIN = 10.0

_log = logging.getLogger(__name__)


#: Merges each frame's predictions into one map of things and stuff; iterating over the result consumes them.
PanopticDecision = Callable[[Iterable[FramePredictions], Clip], PanopticVideo]

#: Returns what `encode` of the model returns for the frames, which have been encoded before.
FeatureCache = Callable[["Local2Global", Sequence[Tensor]], FrameFeatures]


class Local2Global(nn.Module):
    """The online video segmenter.

    Args:
        segmenter: E, D and the heads.
        tracker: query propagation between frames.
        criterion: the losses.
        classes: `{id, name}` of every class, in the order of the logits.
        test_size: (shortest edge, limit of the longest edge) of videos in evaluation.
        threshold: class score in [0, 1] from which a stream reports an object.
        aggregate: how scores are aggregated over a video: "top_quarter", "max" or "mean".
        trainable: regular expressions; only parameters whose name matches one of them are trained.  None: all.
        divisor: images are padded to a multiple of this.
        panoptic: merges predictions into maps of things and stuff.  None: results are tracks.

    Attributes:
        feature_cache: replaces `encode` in training if backbone and encoder are frozen; set by the trainer.

    Raises:
        ValueError: a pattern of `trainable` matches no parameter.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        segmenter: Segmenter,
        tracker: Tracker | ImageTracker,
        criterion: Criterion,
        classes: Sequence[Mapping[str, Any]],
        test_size: tuple[int, int] = (360, 1333),
        threshold: float = 0.3,
        aggregate: Aggregate = "top_quarter",
        trainable: Sequence[str] | None = None,
        divisor: int = 32,
        panoptic: PanopticDecision | None = None,
    ) -> None:
        super().__init__()
        self.segmenter, self.tracker, self.criterion = segmenter, tracker, criterion
        self.classes = [dict(entry) for entry in classes]
        for entry in self.classes:
            if not isinstance(entry.get("name"), str) or not isinstance(entry.get("id"), int):
                raise UserError(f"model.classes: {entry!s:.80}: each class needs an id and a name")
        if not self.classes:
            raise UserError("model.classes: empty; a model needs at least one class")
        if not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
            raise UserError(f"model.threshold={threshold}: expected a number from 0 to 1")
        self.test_size = tuple(test_size)
        if len(self.test_size) != 2 or not all(isinstance(e, int) and e > 0 for e in self.test_size):
            raise UserError(f"model.test_size={self.test_size}: expected [short edge, long edge] in pixels")
        self.threshold, self.aggregate, self.divisor = threshold, aggregate, divisor
        self.panoptic = panoptic
        self.feature_cache: FeatureCache | None = None
        self._graphs = False  # whether streams replay CUDA graphs
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        if trainable is not None:
            self._freeze_all_but(trainable)

    @property
    def device(self) -> torch.device:
        """Device of the model; inputs are moved to it."""
        return self.pixel_mean.device

    def step(self, features: FrameFeatures, past: Queries | None) -> FramePredictions:
        """Segment one frame and update the slots.

        Args:
            features: E(f_t) of B frames.
            past: the slots after frame t - 1; None on the first frame.
        """
        local = self.segmenter.propose(features)  # q_local,t
        queries, positions = self.tracker(past, local, self.segmenter.decoder.embed_boxes)  # Eqs. (2), (3)
        predictions = self.segmenter.decode(queries, positions, features, local.predictions)  # Eq. (1)
        if isinstance(self.tracker, LinkingTracker):
            return self.tracker.link(past, predictions)
        return predictions

    def forward(
        self, clips: Sequence[Clip], normalizer: Tensor | None = None
    ) -> dict[str, Tensor] | list[VideoResult] | Iterator[PanopticVideo]:
        """Losses of clips of equal length in training; in evaluation the result of each clip as a whole video."""
        if self.training:
            return self.losses(clips, normalizer)
        if self.panoptic is not None:
            merge = self.panoptic  # lazy: maps are computed during iteration
            return (merge(self.stream(clip.frames), clip) for clip in clips)
        return [self.segment(clip) for clip in clips]

    def normalizer(self, clips: Sequence[Clip]) -> Tensor:
        """The loss divisors of all clips of an optimizer step, for gradient accumulation (`Criterion.normalizer`)."""
        return self.criterion.normalizer(clips, self.device)

    def losses(self, clips: Sequence[Clip], normalizer: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted losses; gradients flow from frame to frame through the slots.

        Args:
            clips: B clips of T frames with targets.
            normalizer: loss divisors if the batch is a part of an optimizer step.

        Raises:
            ValueError: the clips differ in length, or one has no targets.
        """
        lengths = {len(clip) for clip in clips}
        if len(lengths) != 1:
            raise ValueError(f"the clips of a batch must have equal length, got {sorted(lengths)}")
        frames = [frame for clip in clips for frame in clip.frames]
        encoded = self.encode(frames) if self.feature_cache is None else self.feature_cache(self, frames)
        features = encoded.split(lengths.pop())
        clips = [_targets_to(clip, self.device) for clip in clips]
        predictions: list[FramePredictions] = []
        for frame_features in features:
            past = predictions[-1].queries if predictions else None
            predictions.append(self.step(frame_features, past))
        return self.criterion(clips, features, predictions, normalizer)

    @torch.no_grad()
    def segment(self, clip: Clip) -> VideoResult:
        """The tracks of a whole video; memory does not grow with its length."""
        post = VideoPostprocessor(clip.size, threshold=self.threshold, aggregate=self.aggregate)
        try:
            for predictions in self.stream(clip.frames):
                post.update(predictions)
            return post.result(clip.video_id)
        except BaseException:
            post.close()
            raise

    @torch.no_grad()
    def stream(
        self, frames: Iterable[Tensor], past: Queries | None = None, objects: Tensor | None = None
    ) -> Iterator[FramePredictions]:
        """Segment a video frame by frame; the result of frame t is yielded before frame t + 1 is read.

        Args:
            frames: (3, H, W) uint8 RGB, any number of them.
            past: the slots after the frame before them (`FramePredictions.queries`); None at the start of a video.
            objects: objects on the first frame; they get slots 0 to M - 1.  Masks (M, H', W') bool, at any size of the
                same aspect ratio, replace the predicted masks of the first frame.  For boxes (M, 4), the masks are
                predicted.

        Yields:
            The predictions for each frame, B = 1.

        Raises:
            ValueError: there are more objects than slots, an object has no pixel, or `past` is passed as well.
        """
        if past is not None and objects is not None:
            raise ValueError("pass either `objects` (first frame) or `past`, not both")
        for frame in frames:
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            features = self.encode([frame])
            if objects is None:
                predictions = self.step(features, past)
            else:
                exact = objects.dtype == torch.bool
                masks = (fit_masks if exact else box_masks)(objects.to(self.device), features)
                predictions = self.first(features, masks)
                predictions = with_masks(predictions, masks) if exact else predictions
                objects = None
            past = predictions.queries
            if self._graphs:  # the next frame's graphs overwrite their outputs
                past = past.clone()
                predictions = dataclasses.replace(predictions, queries=past)
            yield predictions

    def first(self, features: FrameFeatures, masks: Tensor) -> FramePredictions:
        """Segment the first frame of a stream that starts from given objects.

        With `ImageTracker`, objects are matched by location.  Otherwise the frame is segmented normally, and objects
        are assigned to slots one-to-one, maximising the summed mask IoU, plus the class score where the IoU exceeds .5.
        A slot that covers an object with a low score is a duplicate, which the decoder suppresses on later frames.

        Args:
            features: the first frame, B = 1.
            masks: (M, h, w) bool, the masks of the objects, which have slots 0 to M - 1.

        Raises:
            ValueError: there are more objects than slots.
        """
        total = self.segmenter.num_queries
        if len(masks) > total:
            raise ValueError(f"{len(masks)} objects are given, the model has {total} slots")
        given = masks[None]
        boxes = mask_to_box(given.float(), torch.zeros(4, device=masks.device), features.extent[:, None])
        if isinstance(self.tracker, StartingTracker):
            return self.step(features, self.tracker.start(boxes, given, self.segmenter.propose(features)))
        predictions = self.step(features, None)
        fit = mask_iou(given, predictions.masks > 0)[0]
        fit = fit + (fit > 0.5) * predictions.logits[0].sigmoid().amax(-1)
        slots = assign(-fit.cpu().numpy())[1]
        rest = np.setdiff1d(np.arange(total), slots)
        order = torch.from_numpy(np.concatenate((slots, rest)))
        predictions = predictions.in_order(order[None].to(masks.device))
        queries = predictions.queries
        if isinstance(queries, RememberedQueries):
            queries = queries.with_objects(boxes, given)
        return dataclasses.replace(predictions, queries=queries)

    def compile_stream(self, size: tuple[int, int] | None = None) -> float:
        """Compile the backbone, the encoder, the aligner and the decoder for streams.

        See `ops.compiling.compile_parts` for CPU and GPU.  The first frames of each size trigger compilation, for up to
        eight sizes.

        Args:
            size: (height, width) of frames to compile for now; None postpones compilation to the first frames.

        Returns:
            The seconds spent, which are logged too; 0 without a C++ compiler.
        """
        segmenter, aligner = self.segmenter, self.tracker.aligner
        parts = [segmenter.backbone, segmenter.encoder, segmenter.decoder]
        if not compile_parts(parts if aligner is None else [*parts, aligner], self.device):
            return 0.0
        self._graphs = self.device.type != "cpu"
        if size is None:
            return 0.0
        start = time.perf_counter()
        for _ in self.stream(torch.zeros(2, 3, *size, dtype=torch.uint8)):
            pass
        seconds = time.perf_counter() - start
        _log.info("compiled for frames of %d x %d in %.0f s", *size, seconds)
        return seconds

    def encode(self, frames: Sequence[Tensor]) -> FrameFeatures:
        """E of (3, H, W) uint8 RGB frames, each padded at its right and bottom to a common size."""
        sizes = [frame.shape[-2:] for frame in frames]
        height, width = (-(-max(side) // self.divisor) * self.divisor for side in zip(*sizes, strict=True))
        images = []
        for frame, (h, w) in zip(frames, sizes, strict=True):
            image = frame.to(self.device, non_blocking=True).float()
            image = (image - self.pixel_mean) / self.pixel_std
            images.append(F.pad(image, (0, width - w, 0, height - h)))
        valid = None
        if any((h, w) != (height, width) for h, w in sizes):
            valid = constant([(w / width, h / height) for h, w in sizes], self.pixel_mean)
        batch = torch.stack(images)
        features = self.segmenter.encode(batch, valid)
        colours = F.interpolate(batch, features.mask_features.shape[-2:], mode="area")
        return dataclasses.replace(features, colours=(colours * self.pixel_std + self.pixel_mean) / 255)

    def _freeze_all_but(self, trainable: Sequence[str]) -> None:
        for pattern in trainable:
            if not any(re.search(pattern, name) for name, _ in self.named_parameters()):
                raise ValueError(f"trainable: no parameter's name matches {pattern!r}")
        for name, parameter in self.named_parameters():
            if not any(re.search(pattern, name) for pattern in trainable):
                parameter.requires_grad_(False)


def fit_masks(objects: Tensor, features: FrameFeatures) -> Tensor:
    """Masks at the size of the mask features: a pixel belongs to an object that covers half of it.

    Args:
        objects: (M, H, W) bool.
        features: one frame, B = 1.

    Returns:
        (M, h, w) bool; an object smaller than half a pixel has the pixel that it covers most.

    Raises:
        ValueError: an object has no pixel.
    """
    if len(objects) == 0 or not objects.flatten(1).any(1).all():
        raise ValueError("a given object has no pixel on the first frame")
    width, height = (round(side) for side in features.extent[0].tolist())
    cover = F.interpolate(objects[None].float(), (height, width), mode="area")[0]
    masks = cover >= cover.flatten(1).amax(1).clamp(max=0.5)[:, None, None]
    rows, columns = (
        side - n for side, n in zip(features.mask_features.shape[-2:], (height, width), strict=True)
    )
    return F.pad(masks, (0, columns, 0, rows))


def box_masks(boxes: Tensor, features: FrameFeatures) -> Tensor:
    """Rectangles at the size of the mask features: the pixels whose centre lies in a box, at least one.

    Args:
        boxes: (M, 4).
        features: one frame, B = 1.

    Returns:
        (M, h, w) bool.
    """
    sides = features.extent[0].tolist()
    inside = []
    for axis, (side, count) in enumerate(
        zip(sides, reversed(features.mask_features.shape[-2:]), strict=True)
    ):
        centres = (torch.arange(count, device=boxes.device) + 0.5) / side
        distance = (centres - boxes[:, axis, None]).abs()  # (M, count)
        inside.append(
            (distance <= boxes[:, axis + 2, None] / 2) | (distance == distance.amin(1, keepdim=True))
        )
    columns, rows = inside
    return rows[:, :, None] & columns[:, None]


def with_masks(predictions: FramePredictions, masks: Tensor) -> FramePredictions:
    """The predictions with the masks of slots 0 to M - 1 replaced.

    Args:
        predictions: of one frame, B = 1.
        masks: (M, h, w) bool.
    """
    logits, boxes = predictions.masks.clone(), predictions.queries.boxes.clone()
    logits[0, : len(masks)] = torch.where(masks, CERTAIN, -CERTAIN)
    boxes[:, : len(masks)] = mask_to_box(logits, boxes, predictions.extent[:, None])[:, : len(masks)]
    return dataclasses.replace(
        predictions, masks=logits, queries=dataclasses.replace(predictions.queries, boxes=boxes)
    )


def _targets_to(clip: Clip, device: torch.device) -> Clip:
    """The clip with its targets on the device, except `visible`, which the criterion reads on the host."""
    if clip.targets is None:
        raise ValueError(f"a training clip of video {clip.video_id} has no targets")
    targets = dataclasses.replace(clip.targets.to(device), visible=clip.targets.visible)
    return dataclasses.replace(clip, targets=targets)
