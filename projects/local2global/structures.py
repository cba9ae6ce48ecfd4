"""The nouns: what the parts of the package hand to one another.

Letters used in every shape of this package: B clips, T frames, N queries, M instances, K classes, C width, L feature
levels, S tokens of all levels, H x W input pixels, h x w mask pixels (stride 4).

Boxes are (cx, cy, w, h) in [0, 1] of the frame's own, unpadded size, everywhere.  Only deformable sampling multiplies
by the valid ratios.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _expect_boxes(embed: Tensor, boxes: Tensor) -> None:
    """One box of four numbers for each of (B, N, C) queries."""
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
    """Which pixels of a padded map lie wholly in padding.

    Args:
        extent: (B, 2) width and height of the unpadded part, in pixels of the map.
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
    """The truth of one clip; an instance keeps its row through all frames.

    Attributes:
        labels: (M,) int64 class indices in [0, K).
        ids: (M,) int64 identities, unique within the clip.
        masks: (M, T, H, W) bool.
        boxes: (M, T, 4) float32 (cx, cy, w, h) in [0, 1]; zeros where the instance is absent.
        visible: (M, T) bool, whether the mask of that frame has a pixel.
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
        """The same truth on another device."""
        return dataclasses.replace(
            self, **{f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self)}
        )


@dataclass(frozen=True)
class Clip:
    """Some frames of one video, as a loader yields them.

    Attributes:
        frames: (T, 3, H, W) uint8 RGB, or a sequence that decodes its T frames of (3, H, W) one by one.
        size: (height, width) of the source video, in which results are reported.
        video_id: the video's id in its annotation file.
        frame_ids: the frames' positions in the video.
        targets: the truth, or None.
        key: names the clip within a run - (seed, iteration, global clip index) - so that every random draw made for
            it is the same whatever the number of processes, and after a resume.
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
    """What the segmentation encoder knows of B frames.

    Attributes:
        memory: (B, S, C) tokens of all levels, coarsest level first.
        shapes: (L, 2) as ints: (height, width) of every level.
        padding: (B, S) bool, True at a token that lies wholly in padding; None where nothing is padded.
        mask_features: (B, C, h, w) at stride 4.
        extent: (B, 2) float32, (width, height) of the unpadded frame in mask pixels.
        valid_ratios: (B, L, 2) float32, the unpadded part of each level's width and height.
    """

    memory: Tensor
    shapes: tuple[tuple[int, int], ...]
    padding: Tensor | None
    mask_features: Tensor
    extent: Tensor
    valid_ratios: Tensor

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

    @property
    def mask_padding(self) -> Tensor:
        """(B, h, w) bool, True at a mask pixel that lies wholly in padding."""
        return padded_pixels(self.extent, *self.mask_features.shape[-2:])

    def split(self, length: int) -> list[FrameFeatures]:
        """The features of B clips of `length` frames, clip-major, as one `FrameFeatures` of B per time step."""

        def at(value: Any, t: int) -> Any:
            return value[t::length] if isinstance(value, Tensor) else value

        names = [f.name for f in dataclasses.fields(self)]
        return [FrameFeatures(**{name: at(getattr(self, name), t) for name in names}) for t in range(length)]


@dataclass(frozen=True)
class Queries:
    """The slots: the whole state that crosses frames.  Row i is the same object in every frame.

    Attributes:
        embed: (B, N, C) the last decoder layer's output before its norm.
        boxes: (B, N, 4) where each slot's mask was last seen.
    """

    embed: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        _expect_boxes(self.embed, self.boxes)


@dataclass(frozen=True)
class Positions:
    """Where queries look.

    Attributes:
        embed: (B, N, C) position embedding, added to queries and keys.
        boxes: (B, N, 4) reference boxes.
        current: whether `boxes` hold for the frame at hand; where they do not, the decoder starts from the box of
            each incoming query's mask on this frame and falls back on `boxes` where that mask is empty.
    """

    embed: Tensor
    boxes: Tensor
    current: bool = True

    def __post_init__(self) -> None:
        _expect_boxes(self.embed, self.boxes)


@dataclass(frozen=True)
class LayerPredictions:
    """What the heads read from one set of queries: the input of one set of losses.

    Attributes:
        logits: (B, N, K) class logits.
        boxes: (B, N, 4), or None where the layer predicts none.
        mask_embed: (B, N, C), to be multiplied with mask features.
    """

    logits: Tensor
    boxes: Tensor | None
    mask_embed: Tensor


@dataclass(frozen=True)
class Proposals:
    """Local queries: the current frame's best encoder tokens, by falling confidence.

    Attributes:
        embed: (B, K, C) their content, detached.
        predictions: what the encoder's own heads say of them, with gradients.
        locate: finds the boxes of their masks; only the first frame and dynamic l_pos ask for it.
    """

    embed: Tensor
    predictions: LayerPredictions
    locate: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def boxes(self) -> Tensor:
        """(B, K, 4) Mask2Box of their masks, without gradients."""
        return self.locate()


@dataclass(frozen=True)
class FramePredictions:
    """One frame's answer.

    Attributes:
        logits: (B, N, K) class logits of the final layer.
        boxes: (B, N, 4) of the final layer.
        masks: (B, N, h, w) mask logits of the final layer, float32, without gradients; 0 in padding.
        extent: (B, 2) float32, (width, height) of the unpadded frame in mask pixels.
        queries: the slots as they go to the next frame.
        layers: in training, the predictions of layer 0 (the aligner's output) and of every decoder layer, the final
            one last; empty in evaluation.
        local: in training, the predictions of the local queries.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor
    extent: Tensor
    queries: Queries
    layers: tuple[LayerPredictions, ...] = ()
    local: LayerPredictions | None = None

    def in_order(self, order: Tensor) -> FramePredictions:
        """The same predictions with slot i taken from row order[:, i] of (B, N); the local queries stay as they are."""

        def taken(value: Tensor) -> Tensor:
            index = order.view(*order.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:])
            return value.gather(1, index)

        def layer(one: LayerPredictions) -> LayerPredictions:
            boxes = None if one.boxes is None else taken(one.boxes)
            return LayerPredictions(taken(one.logits), boxes, taken(one.mask_embed))

        return dataclasses.replace(
            self,
            logits=taken(self.logits),
            boxes=taken(self.boxes),
            masks=taken(self.masks),
            queries=Queries(taken(self.queries.embed), taken(self.queries.boxes)),
            layers=tuple(layer(one) for one in self.layers),
        )


@dataclass(frozen=True)
class FrameResult:
    """The objects reported on one frame of a stream.

    Attributes:
        index: the frame's position in the stream.
        ids: (n,) int64 slots; an id is one object throughout the stream.
        labels: (n,) int64 class indices.
        scores: (n,) float32 in [0, 1].
        masks: (n, height, width) bool at the source's size.
        boxes: (n, 4) float32 (cx, cy, w, h) in [0, 1].
    """

    index: int
    ids: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class PanopticSegment:
    """A segment of one panoptic map.

    Attributes:
        id: the value of its pixels, the same for one object (and one class of stuff) throughout the video.
        label: class index.
        area: its pixels.
        score: in [0, 1].
    """

    id: int
    label: int
    area: int
    score: float


@dataclass(frozen=True)
class PanopticFrame:
    """One frame of a panoptic result: every pixel belongs to one segment or to none.

    Attributes:
        index: the frame's position in the video.
        ids: (height, width) int32 on the CPU, 0 where no segment is.
        segments: those with a pixel, by rising id.
    """

    index: int
    ids: Tensor
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True)
class PanopticVideo:
    """One video's panoptic result, made while it is read; it can be read once.

    Attributes:
        video_id: the video's id.
        size: (height, width) of the maps.
        length: the number of frames.
        frames: one after the other, each decided before the next frame of the video is looked at.
        final: asked for after `frames` is spent, the same frames decided anew with what the whole video has shown;
            None where that was not wanted.
    """

    video_id: int
    size: tuple[int, int]
    length: int
    frames: Iterator[PanopticFrame] = field(repr=False)
    final: Callable[[], Iterator[PanopticFrame]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class VideoResult:
    """One video's tracks, best first: what evaluators and writers read.

    Attributes:
        video_id: the video's id.
        size: (height, width) of the masks.
        length: the number of frames.
        slots: (k,) int64 query of each track.
        labels: (k,) int64 class indices.
        scores: (k,) float32 in [0, 1], falling.
        read: gives the masks of a slot, frame by frame: a compressed COCO RLE, or None where the mask is empty.
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

    def segmentations(self, index: int) -> Iterator[dict[str, Any] | None]:
        """The masks of track `index`, one per frame."""
        return self.read(int(self.slots[index]))
