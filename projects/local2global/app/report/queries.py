"""Inside the method: where the aligner and the decoder looked for each object, and its slot over time.

The model runs over the video again.  Hooks read the attention of the aligner's cross-attention, Eq. (3), and the
sampling points of the last decoder layer.  Slots are the aligner's output, or the decoder's input without an aligner.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...data.augment import resize_shortest_edge
from ...errors import UserError
from ...modeling.aligner import AlignerLayer
from ...modeling.deformable import DeformableAttention
from ...modeling.memory import RememberedQueries
from ...modeling.tracker import Tracker
from ...structures import Queries
from ..predict import L2G
from ..source import Source
from .film import frames_of
from .run import Run

#: Frames that are looked at, local queries and sampling points that are kept per object and frame.
MAX_FRAMES, LOCAL, POINTS = 600, 6, 24
#: Attention below this is not drawn: a hundred local queries have 0.01 each on average.
MIN_WEIGHT = 0.03
_UNITS = 1000  # steps of a coordinate or weight in [0, 1]


@dataclass
class Look:
    """What the hooks read on one frame.

    Attributes:
        attention: (N, N) weights of the slots over the local queries, mean over heads, one per aligner layer.
        boxes: (N, 4) boxes of the local queries.
        slots: (N, C).
        points: x, y and weight, (N, heads * levels * points) each, in [0, 1] of the padded frame.
        padded: (width, height) of the padded frame in pixels.
    """

    attention: list[Tensor] = field(default_factory=list)
    boxes: Tensor | None = None
    slots: Tensor | None = None
    points: tuple[Tensor, Tensor, Tensor] | None = None
    padded: tuple[int, int] = (1, 1)


@contextmanager
def watched(module: nn.Module) -> Iterator[Look]:
    """Registers the hooks; the yielded value is filled by each frame.

    Raises:
        UserError: if the model has no tracker or no deformable decoder to look into.
    """
    look = Look()
    tracker, segmenter = getattr(module, "tracker", None), getattr(module, "segmenter", None)
    samplers = [part for part in _parts(segmenter, "decoder") if isinstance(part, DeformableAttention)]
    if not isinstance(tracker, Tracker) or not samplers or segmenter is None:
        raise UserError(
            "--queries needs a model with slots that are propagated; this one links single frames"
        )

    def ask(_: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, "need_weights": True, "average_attn_weights": True}

    def attended(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
        look.attention.append(output[1][0])

    def tracked(_: nn.Module, inputs: Any, output: Any) -> None:
        look.boxes, look.slots = inputs[1].boxes[0], output[0].embed[0]

    def sampled(part: nn.Module, inputs: Any) -> None:
        query, references, _, shapes = inputs[:4]
        points = cast(DeformableAttention, part).sampling_points(query, references, shapes)
        look.points = cast("tuple[Tensor, Tensor, Tensor]", tuple(value[0].flatten(1) for value in points))

    def padded(_: nn.Module, inputs: Any) -> None:
        look.padded = (inputs[0].shape[-1], inputs[0].shape[-2])

    with ExitStack() as stack:
        for layer in _parts(tracker, "aligner"):
            if isinstance(layer, AlignerLayer):
                attention = layer.cross_attn.attention
                stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
                stack.callback(attention.register_forward_hook(attended, with_kwargs=True).remove)
        stack.callback(tracker.register_forward_hook(tracked).remove)
        stack.callback(samplers[-1].register_forward_pre_hook(sampled).remove)
        stack.callback(segmenter.backbone.register_forward_pre_hook(padded).remove)
        yield look


def _parts(module: nn.Module | None, name: str) -> list[nn.Module]:
    part = getattr(module, name, None)
    return list(part.modules()) if isinstance(part, nn.Module) else []


@torch.inference_mode()
def explain(model: L2G, source: Source, run: Run) -> dict[str, Any]:
    """Runs the model over the video and collects what it looked at for the reported objects.

    Args:
        model: the weights that made the run.
        source: the video.
        run: the loaded run.

    Returns:
        `code`, compressed JSON for the page: by frame, {identity: [local queries, sampling points]}, flat lists of
        cx, cy, w, h, weight and of x, y, weight, in 1/1000; `frames`, the number of frames; `strips`, by identity a
        picture of its slot over time as a data URL.

    Raises:
        UserError: if the model is another than that of the record.
    """
    if run.fingerprint is not None and run.fingerprint != model.fingerprint:
        raise UserError(f"{run.name}: --weights are not those that made this run")
    module = model.module
    size = module.test_size
    frames, slots = [], []
    count = min(len(run.times), MAX_FRAMES)
    reported = _reported(run, count)
    with watched(cast(nn.Module, module)) as look:
        images = (resize_shortest_edge(frame, *size) for frame in frames_of(source, run))
        for t, predictions in zip(range(count), module.stream(images), strict=False):
            highest = max(reported[t], default=0)
            if look.slots is None or highest >= len(look.slots):
                raise UserError(f"{run.name}: identity {highest} is no slot of these weights")
            valid = (predictions.extent[0] * 4 / predictions.extent.new_tensor(look.padded)).tolist()
            rows = {identity: row_of(identity, predictions.queries) for identity in reported[t]}
            frames.append({str(identity): _object(look, row, valid) for identity, row in rows.items()})
            slots.append({identity: look.slots[row].float().cpu().numpy() for identity, row in rows.items()})
            look.attention.clear()
    text = json.dumps(frames, separators=(",", ":")).encode("ascii")
    return {
        "code": base64.b64encode(zlib.compress(text, 9)).decode("ascii"),
        "frames": count,
        "strips": _strips(slots, len(run.times)),
    }


def row_of(identity: int, slots: Queries) -> int:
    """The row of an object among the queries of the frame: a memory may have given it another slot's number."""
    return int(slots.row[0, identity]) if isinstance(slots, RememberedQueries) else identity


def _reported(run: Run, count: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(count)]
    for identity in run.identities.values():
        for t in identity.frames:
            if t < count:
                out[t].append(identity.id)
    return out


def _object(look: Look, slot: int, valid: Sequence[float]) -> list[list[int]]:
    """Local queries and sampling points of one slot, the heaviest first."""
    local: list[int] = []
    if look.attention and look.boxes is not None:
        weights, order = torch.stack(look.attention).mean(0)[slot].sort(descending=True)
        for weight, index in zip(weights[:LOCAL].tolist(), order[:LOCAL].tolist(), strict=True):
            if weight >= MIN_WEIGHT:
                local += _integers([*look.boxes[index].tolist(), weight])
    assert look.points is not None
    x, y, weight = (values[slot] for values in look.points)
    top = weight.topk(min(POINTS, len(weight))).indices
    points = torch.stack([x[top] / valid[0], y[top] / valid[1], weight[top]], 1)
    return [local, _integers(points.flatten().tolist())]


def _integers(values: Sequence[float]) -> list[int]:
    return [round(value * _UNITS) for value in values]


def _strips(slots: Sequence[Mapping[int, NDArray[np.float32]]], length: int) -> dict[int, str]:
    """One row of pixels per identity, one pixel per frame: the first three principal components as red, green, blue."""
    places = [(t, identity) for t, frame in enumerate(slots) for identity in frame]
    if not places:
        return {}
    values = np.stack([slots[t][identity] for t, identity in places])
    centred = values - values.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    parts = centred @ directions[:3].T
    low, high = np.percentile(parts, [2, 98], axis=0)
    colours = ((parts - low) / np.maximum(high - low, 1e-9)).clip(0, 1) * 255
    rows: dict[int, NDArray[np.uint8]] = {}
    for (t, identity), rgb in zip(places, colours, strict=True):
        row = rows.setdefault(identity, np.zeros((1, length, 4), np.uint8))
        row[0, t, : len(rgb)], row[0, t, 3] = rgb.astype(np.uint8), 255
    return {identity: _png(row) for identity, row in rows.items()}


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
