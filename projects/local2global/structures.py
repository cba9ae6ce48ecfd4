"""Shared data types.

Letters used in every shape of this package: B clips, T frames, N queries (global and local), M instances, K classes,
C width, L feature levels, S tokens of all levels, H x W input pixels, h x w mask pixels (stride 4).

Boxes are (cx, cy, w, h) in [0, 1] of the unpadded frame, everywhere.  Only deformable sampling multiplies by the valid
ratios.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import UserError


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _expect_boxes(embed: Tensor, boxes: Tensor) -> None:
    """Check that (B, N, C) queries have (B, N, 4) boxes."""
    shape = (*embed.shape[:2], 4)
    _expect(boxes.shape == shape, f"boxes: expected {shape}, got {tuple(boxes.shape)}")


def _move(value: Any, device: torch.device | str) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


#: (height, width) of every feature level.
Shapes = Sequence[tuple[int, int]]


def constant(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor on the device of `like`, in its dtype or another.

    Unlike `like.new_tensor`, this avoids a device synchronisation.
    """
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)


def padded_pixels(extent: Tensor, height: int, width: int) -> Tensor:
    """Mask of the pixels of a map that lie wholly in padding.

    Args:
        extent: (B, 2) width and height of the unpadded frame, in pixels of the map.
        height: rows of the map.
        width: columns of the map.

    Returns:
        (B, height, width) bool.
    """
    beyond_x = torch.arange(width, device=extent.device) >= extent[:, :1]
    beyond_y = torch.arange(height, device=extent.device) >= extent[:, 1:]
    return beyond_y[:, :, None] | beyond_x[:, None, :]


@dataclass(frozen=True)
class ClipTargets:
    """Ground truth of one clip; an instance has the same row on all frames.

    Attributes:
        labels: (M,) int64 class indices in [0, K).
        ids: (M,) int64 identities, unique within the clip.
        masks: (M, T, H, W) bool.
        boxes: (M, T, 4) float32 (cx, cy, w, h) in [0, 1]; zeros on frames where the instance is absent.
        visible: (M, T) bool, whether the mask has a pixel on the frame.
    """

    labels: Tensor
    ids: Tensor
    masks: Tensor
    boxes: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        count, length = self.visible.shape
        _expect(self.labels.shape == (count,), f"labels: expected ({count},), got {tuple(self.labels.shape)}")
        _expect(self.ids.shape == (count,), f"ids: expected ({count},), got {tuple(self.ids.shape)}")
        _expect(
            self.masks.ndim == 4 and self.masks.shape[:2] == (count, length),
            f"masks: expected ({count}, {length}, H, W), got {tuple(self.masks.shape)}",
        )
        _expect(
            self.boxes.shape == (count, length, 4),
            f"boxes: expected ({count}, {length}, 4), got {tuple(self.boxes.shape)}",
        )
        _expect(self.visible.dtype == torch.bool, f"visible: expected bool, got {self.visible.dtype}")
        _expect(self.masks.dtype == torch.bool, f"masks: expected bool, got {self.masks.dtype}")

    def __len__(self) -> int:
        """The number of instances M."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> ClipTargets:
        """The targets on another device."""
        return dataclasses.replace(
            self, **{f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self)}
        )


@dataclass(frozen=True)
class Clip:
    """Frames of one video, as a loader yields them.

    Attributes:
        frames: (T, 3, H, W) uint8 RGB, or a sequence that decodes its T frames of (3, H, W) one by one.
        size: (height, width) of the source video; results are reported at this size.
        video_id: id of the video in its annotation file.
        frame_ids: positions of the frames in the video.
        targets: ground truth, or None.
        key: (seed, iteration, global clip index).  Random draws for a clip depend on its key only, so they do not
            change with the number of processes or after a resume.
    """

    frames: Tensor | Sequence[Tensor]
    size: tuple[int, int]
    video_id: int = 0
    frame_ids: tuple[int, ...] = ()
    targets: ClipTargets | None = None
    key: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        if isinstance(self.frames, Tensor):
            _expect(
                self.frames.ndim == 4 and self.frames.shape[1] == 3 and self.frames.dtype == torch.uint8,
                f"frames: expected (T, 3, H, W) uint8, got {tuple(self.frames.shape)} {self.frames.dtype}",
            )
        _expect(
            len(self.frame_ids) in (0, len(self.frames)),
            f"{len(self.frame_ids)} frame_ids for {len(self.frames)} frames",
        )
        if self.targets is not None:
            _expect(
                self.targets.visible.shape[1] == len(self.frames),
                f"targets of {self.targets.visible.shape[1]} frames for a clip of {len(self.frames)}",
            )

    def __len__(self) -> int:
        """The number of frames T."""
        return len(self.frames)


@dataclass(frozen=True)
class FrameFeatures:
    """Output of the segmentation encoder for B frames.

    Attributes:
        memory: (B, S, C) tokens of all levels, coarsest level first.
        shapes: (L, 2) as ints: (height, width) of every level.
        padding: (B, S) bool, True at a token that lies wholly in padding; None if no frame is padded.
        mask_features: (B, C, h, w) at stride 4.
        extent: (B, 2) float32, (width, height) of the unpadded frame in mask pixels.
        valid_ratios: (B, L, 2) float32, unpadded fraction of each level's width and height.
        colours: (B, 3, h, w) float32, mean RGB in [0, 1] of the frame at every mask pixel; None if not known.
    """

    memory: Tensor
    shapes: tuple[tuple[int, int], ...]
    padding: Tensor | None
    mask_features: Tensor
    extent: Tensor
    valid_ratios: Tensor
    colours: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = sum(height * width for height, width in self.shapes)
        batch = len(self.memory)
        expected = {
            "padding": (batch, tokens),
            "extent": (batch, 2),
            "valid_ratios": (batch, len(self.shapes), 2),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None:
                _expect(value.shape == shape, f"{name}: expected {shape}, got {tuple(value.shape)}")
        _expect(
            len(self.mask_features) == batch,
            f"mask_features of {len(self.mask_features)} frames, not {batch}",
        )
        _expect(
            self.memory.shape[1] == tokens, f"memory of {self.memory.shape[1]} tokens for levels of {tokens}"
        )

    def split(self, length: int) -> list[FrameFeatures]:
        """Features of B clips of `length` frames, clip-major, as one `FrameFeatures` of B frames per time step."""

        def at(value: Any, t: int) -> Any:
            return value[t::length] if isinstance(value, Tensor) else value

        names = [f.name for f in dataclasses.fields(self)]
        return [FrameFeatures(**{name: at(getattr(self, name), t) for name in names}) for t in range(length)]


@dataclass(frozen=True)
class Queries:
    """The slots: the whole state that is carried between frames.  Row i is the same object on every frame.

    A tracker that has to remember more carries a subclass; every field is a tensor whose first axes are (B, N).

    Attributes:
        embed: (B, N, C) content; between frames, the last decoder layer's output before its norm.
        boxes: (B, N, 4) Mask2Box of each slot's last non-empty mask.
    """

    embed: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        _expect_boxes(self.embed, self.boxes)

    def clone(self) -> Queries:
        """A copy that shares no memory with the original, of the same class."""
        tensors = {f.name: getattr(self, f.name).clone() for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **tensors)


@dataclass(frozen=True)
class Positions:
    """Positions of the queries of one frame.

    Attributes:
        embed: (B, N, C) position embedding, added to queries and keys.
        boxes: (B, N, 4) initial reference boxes of the decoder.  None: initial boxes are Mask2Box of current-frame
            masks; for an empty mask, the last box of the slot.
    """

    embed: Tensor
    boxes: Tensor | None

    def __post_init__(self) -> None:
        if self.boxes is not None:
            _expect_boxes(self.embed, self.boxes)


@dataclass(frozen=True)
class LayerPredictions:
    """Output of the heads for one set of queries: the input of one set of losses.

    Attributes:
        logits: (B, N, K) class logits.
        boxes: (B, N, 4), or None if the layer predicts no boxes.
        mask_embed: (B, N, C) mask embeddings; their dot products with the mask features are the mask logits.
    """

    logits: Tensor
    boxes: Tensor | None
    mask_embed: Tensor


@dataclass(frozen=True)
class Proposals:
    """Local queries: the current frame's most confident encoder tokens, by decreasing confidence.

    Attributes:
        embed: (B, N, C) content, detached.
        boxes: (B, N, 4) Mask2Box of their masks, detached; a query with an empty mask has the encoder's box.
        predictions: output of the heads for them, with gradients.
    """

    embed: Tensor
    boxes: Tensor
    predictions: LayerPredictions

    def __post_init__(self) -> None:
        _expect_boxes(self.embed, self.boxes)


@dataclass(frozen=True)
class FramePredictions:
    """Predictions for one frame of B clips.

    Attributes:
        logits: (B, N, K) class logits of the final layer.
        boxes: (B, N, 4) of the final layer.
        masks: (B, N, h, w) mask logits of the final layer, float32, without gradients; 0 in padding.
        extent: (B, 2) float32, (width, height) of the unpadded frame in mask pixels.
        queries: the slots that are passed to the next frame.
        layers: in training, the predictions of layer 0 (the aligner's output) and of every decoder layer, the final
            layer last; empty in evaluation.
        local: in training, the predictions of the local queries; None in evaluation.
        colours: (B, 3, h, w) of the frame, see `FrameFeatures`; None if not known.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor
    extent: Tensor
    queries: Queries
    layers: tuple[LayerPredictions, ...] = ()
    local: LayerPredictions | None = None
    colours: Tensor | None = None

    def in_order(self, order: Tensor) -> FramePredictions:
        """The predictions with row i taken from row order[:, i]; those of the local queries are unchanged.

        Args:
            order: (B, N) int64, a permutation of the slots of each clip.
        """

        def reorder(value: Tensor) -> Tensor:
            index = order.view(*order.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:])
            return value.gather(1, index)

        def reorder_layer(layer: LayerPredictions) -> LayerPredictions:
            boxes = None if layer.boxes is None else reorder(layer.boxes)
            return LayerPredictions(reorder(layer.logits), boxes, reorder(layer.mask_embed))

        return dataclasses.replace(
            self,
            logits=reorder(self.logits),
            boxes=reorder(self.boxes),
            masks=reorder(self.masks),
            queries=type(self.queries)(
                **{name: reorder(value) for name, value in vars(self.queries).items()}
            ),
            layers=tuple(reorder_layer(layer) for layer in self.layers),
        )


@dataclass(frozen=True)
class FrameArrays:
    """`FrameResult` as numpy arrays, with boxes in pixels.

    Attributes:
        index: position of the frame in the stream.
        ids: (n,) int64.
        labels: (n,) int64 class indices.
        scores: (n,) float32 in [0, 1].
        masks: (n, H, W) bool.
        boxes: (n, 4) float32 (left, top, right, bottom) in pixels, within the frame.
    """

    index: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]


@dataclass(frozen=True)
class FrameResult:
    """The objects reported on one frame of a stream.

    Attributes:
        index: position of the frame in the stream.
        ids: (n,) int64 slots; an id is the same object throughout the stream.
        labels: (n,) int64 class indices.
        scores: (n,) float32 in [0, 1].
        masks: (n, height, width) bool at the size of the source video.
        boxes: (n, 4) float32 (cx, cy, w, h) in [0, 1].
        class_names: the name of every label, if the model is known.
    """

    index: int
    ids: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    boxes: Tensor
    class_names: tuple[str, ...] = ()

    def to_numpy(self) -> FrameArrays:
        """Copies to numpy arrays on the CPU."""
        height, width = self.masks.shape[-2:]
        boxes = self.boxes.cpu().float()
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        size = torch.tensor([width, height, width, height])
        corners = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1) * size
        arrays = (self.ids, self.labels, self.scores, self.masks, corners)
        return FrameArrays(self.index, *(array.detach().cpu().numpy().copy() for array in arrays))

    def to_supervision(self) -> Any:
        """`supervision.Detections` with masks, `tracker_id` and, if known, `class_name`.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                "to_supervision needs supervision: pip install 'local2global[supervision]'"
            ) from error
        arrays = self.to_numpy()
        names = [self.class_names[k] for k in arrays.labels] if self.class_names else []
        return supervision.Detections(
            xyxy=arrays.boxes,
            mask=arrays.masks,
            confidence=arrays.scores,
            class_id=arrays.labels,
            tracker_id=arrays.ids,
            data={"class_name": np.array(names, dtype=np.str_)} if self.class_names else {},
        )


@dataclass(frozen=True)
class PanopticSegment:
    """A segment of one panoptic map.

    Attributes:
        id: pixel value; constant per object or stuff class.
        label: class index.
        area: number of pixels.
        score: in [0, 1].
    """

    id: int
    label: int
    area: int
    score: float


@dataclass(frozen=True)
class PanopticFrame:
    """Panoptic map of one frame: every pixel belongs to one segment or to none.

    Attributes:
        index: position of the frame in the video.
        ids: (height, width) int32 on the CPU, 0 where there is no segment.
        segments: segments with at least one pixel, by increasing id.
    """

    index: int
    ids: Tensor
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True)
class PanopticVideo:
    """Panoptic result of one video, computed while it is iterated; it can be iterated once.

    Attributes:
        video_id: id of the video.
        size: (height, width) of the maps.
        length: number of frames.
        frames: maps of the frames; each is final before the next frame of the video is read.
        final: second-pass maps, recomputed with whole-video scores; call it after `frames` is exhausted.  None if
            disabled.
    """

    video_id: int
    size: tuple[int, int]
    length: int
    frames: Iterator[PanopticFrame] = field(repr=False)
    final: Callable[[], Iterator[PanopticFrame]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class VideoResult:
    """Tracks of one video, highest score first: the input of evaluators and writers.

    Attributes:
        video_id: id of the video.
        size: (height, width) of the masks.
        length: number of frames.
        slots: (k,) int64 slot of each track.
        labels: (k,) int64 class indices.
        scores: (k,) float32 in [0, 1], decreasing.
        read: yields the masks of a slot, one per frame: a compressed COCO RLE, or None if the mask is empty.
    """

    video_id: int
    size: tuple[int, int]
    length: int
    slots: Tensor
    labels: Tensor
    scores: Tensor
    read: Callable[[int], Iterator[dict[str, Any] | None]] = field(repr=False)

    def __len__(self) -> int:
        """The number of tracks."""
        return len(self.slots)
