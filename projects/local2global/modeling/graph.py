"""One step of a stream as a function of tensors, for export: frame and slots in, predictions and slots out."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import UserError
from .model import Local2Global
from .positions import TrajectoryPositions
from .swin import Swin
from .tracker import Tracker
from .variants import RememberingTracker

#: Stride of the masks.
STRIDE = 4


class StepGraph(nn.Module):
    """`Local2Global.step` for frames of one size.

    Args:
        model: with `Tracker`, a trajectory as g_pos, and an aligned first frame: its first frame then differs from
            the others in the source of the slots only.  The memory of a `RememberingTracker` is not exported.
        height: rows of the frames.
        width: columns of the frames.

    Attributes:
        initial: the inputs of the first frame, by name, with a black frame.

    Raises:
        UserError: for another model, or if the model cannot process frames of this size.
    """

    def __init__(self, model: nn.Module, height: int, width: int) -> None:
        super().__init__()
        if not isinstance(model, Local2Global):
            raise UserError(f"export: expected a Local2Global model, got {type(model).__name__}")
        tracker, reason = model.tracker, None
        if model.panoptic is not None:
            reason = "panoptic models merge a frame's masks outside of the graph"
        elif isinstance(model.segmenter.backbone, Swin):
            reason = "Swin backbones are not supported"
        elif not isinstance(tracker, Tracker):
            reason = f"{type(tracker).__name__} links objects outside of the graph; weights with a tracker are needed"
        elif not (isinstance(tracker.positions, TrajectoryPositions) and tracker.first_frame.align):
            reason = "model.tracker needs positions=trajectory and an aligned first frame"
        if reason is not None:
            raise UserError(f"this model cannot be exported: {reason}")
        assert isinstance(tracker, Tracker)
        if isinstance(tracker, RememberingTracker):
            tracker = tracker.without_memory()
            model = copy.deepcopy(model)
            model.tracker = tracker
        self.model, self.tracker = model.eval(), tracker

        frame = torch.zeros(3, height, width, dtype=torch.uint8)
        try:
            with torch.no_grad():
                slots = self.model.step(self.model.encode([frame]), None).queries
        except ValueError as error:
            raise UserError(f"frames of {height}x{width}: {error}") from error
        self._kind = type(slots)  # a tracker may use a subclass of `Queries`
        zeros = {name: torch.zeros_like(value[0]) for name, value in vars(slots).items()}
        self.initial = {"frame": frame, "first": torch.ones(1, dtype=torch.bool), **zeros}

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return ["scores", "masks", *(f"next_{name}" for name in list(self.initial)[2:])]

    def forward(self, frame: Tensor, first: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
        """Segment one frame.

        Args:
            frame: (3, H, W) uint8 RGB.
            first: (1,) bool, True on the first frame of a video, where the slots are ignored.
            *slots: after the previous frame, without a batch dimension, in the order of `initial`.

        Returns:
            (N, K) class scores in [0, 1]; (N, ceil(H / 4), ceil(W / 4)) mask logits; the slots after this frame.
        """
        features = self.model.encode([frame])
        start = vars(self.tracker.first_frame(self.model.segmenter.propose(features)))
        fields = zip(list(self.initial)[2:], slots, strict=True)
        past = {
            name: torch.where(first, start.get(name, torch.zeros_like(value)), value[None])
            for name, value in fields
        }
        predictions = self.model.step(features, self._kind(**past))
        rows, columns = (-(-side // STRIDE) for side in frame.shape[-2:])
        masks = predictions.masks[0, :, :rows, :columns]
        after = (value[0] for value in vars(predictions.queries).values())
        return predictions.logits[0].sigmoid(), masks, *after
