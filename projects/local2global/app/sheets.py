"""Truth to look at: clips with masks, ids and boxes, a row each on a contact sheet or one after another in a video."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.check import Sample
from ..errors import UserError
from ..structures import Clip, FrameResult
from .draw import colour, contact_sheet, draw
from .video import VideoWriter

FPS = 4
"""Of an overlay video: slow enough to follow an outline."""
_MARGIN = 245
"""Grey level of what no frame covers."""


@dataclass(frozen=True)
class Drawn:
    """One clip as pictures.

    Attributes:
        title: what it is, one line.
        frames: (3, H, W) uint8 RGB each, all of one size.
    """

    title: str
    frames: tuple[Tensor, ...]


def draw_truth(
    frame: Tensor,
    labels: Tensor,
    ids: Tensor,
    masks: Tensor,
    boxes: Tensor | None,
    classes: Sequence[dict[str, Any]],
) -> Tensor:
    """A frame with its true masks, ids and class names and, if given, boxes.

    Args:
        frame: (3, H, W) uint8 RGB.
        labels: (M,) positions in `classes`.
        ids: (M,) identities.
        masks: (M, H, W) bool.
        boxes: (M, 4) (cx, cy, w, h) in [0, 1]; none is drawn for an empty mask.
        classes: {id, name} of every class.
    """
    unscored = torch.full(labels.shape, torch.nan)
    places = torch.zeros(len(labels), 4) if boxes is None else boxes
    picture = draw(frame, FrameResult(0, ids, labels, unscored, masks, places), classes)
    for row in range(len(labels) if boxes is not None else 0):
        if masks[row].any():
            _outline(picture, places[row], colour(int(ids[row])))
    return picture


def _outline(picture: Tensor, box: Tensor, tint: tuple[int, int, int]) -> None:
    """Draws one box in place, a pixel thick, just outside the pixels it holds."""
    height, width = picture.shape[1:]
    cx, cy, w, h = (float(x) for x in box)
    left, right = round((cx - w / 2) * width) - 1, round((cx + w / 2) * width)
    top, bottom = round((cy - h / 2) * height) - 1, round((cy + h / 2) * height)
    ink = torch.tensor(tint, dtype=torch.uint8)[:, None]
    rows, columns = slice(max(top, 0), bottom + 1), slice(max(left, 0), right + 1)
    for column in (left, right):
        if 0 <= column < width:
            picture[:, rows, column] = ink
    for row in (top, bottom):
        if 0 <= row < height:
            picture[:, row, columns] = ink


def draw_clip(clip: Clip, classes: Sequence[dict[str, Any]], name: str = "") -> Drawn:
    """A training clip as the model is fed it."""
    targets = clip.targets
    assert targets is not None
    frames = tuple(
        draw_truth(frame, targets.labels, targets.ids, targets.masks[:, t], targets.boxes[:, t], classes)
        for t, frame in enumerate(clip.frames)
    )
    objects = ", ".join(
        f"#{i} {classes[k]['name']}"
        for i, k in zip(targets.ids.tolist(), targets.labels.tolist(), strict=True)
    )
    height, width = frames[0].shape[1:]
    shown = ", ".join(map(str, clip.frame_ids))
    called = name or f"video {clip.video_id}"
    return Drawn(f"{called}, frames {shown}, {height}x{width}: {objects or 'no instance'}", frames)


def draw_sample(sample: Sample, frames: int) -> Drawn | None:
    """Some frames of a dataset's clip, evenly spread; None if none of them can be read."""
    video, drawn = sample.video, []
    for t in _spread(video.length, frames):
        try:
            frame = video.frame(t)
        except UserError:
            continue
        drawn.append(draw_truth(frame, video.labels, video.ids, video.masks(t), None, sample.classes))
    return Drawn(video.name, tuple(drawn)) if drawn else None


def _spread(length: int, count: int) -> list[int]:
    """At most `count` positions, first and last among them."""
    if length <= count:
        return list(range(length))
    return [round(i * (length - 1) / (count - 1)) for i in range(count)] if count > 1 else [0]


def write_clips(clips: Sequence[Drawn], path: Path, cell: int | None = None) -> None:
    """Writes clips into one file: a .mp4 shows one after another, a .png or .jpg one in each row.

    Smaller frames stand on grey in the upper left.

    Args:
        clips: the clips, at least one.
        path: the file; it appears only when it is whole.
        cell: the most pixels of a frame's longer edge; larger frames are reduced.

    Raises:
        UserError: if the ending is none of these.
    """
    rows = [[_reduced(frame, cell) for frame in clip.frames] for clip in clips]
    height, width = (max(int(frame.shape[axis]) for row in rows for frame in row) for axis in (1, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        with VideoWriter(path, FPS, (height, width)) as writer:
            for frame in (frame for row in rows for frame in row):
                writer.write(_on_grey(frame, height, width))
        return
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: an overlay is a .mp4, a contact sheet a .png or .jpg file.")
    columns = max(len(row) for row in rows)
    blank = torch.full((3, height, width), _MARGIN, dtype=torch.uint8)
    cells = [
        _on_grey(row[i], height, width) if i < len(row) else blank for row in rows for i in range(columns)
    ]
    contact_sheet(cells, path, columns)


def _on_grey(frame: Tensor, height: int, width: int) -> Tensor:
    padding = (0, width - int(frame.shape[2]), 0, height - int(frame.shape[1]))
    return F.pad(frame, padding, value=_MARGIN)


def _reduced(frame: Tensor, cell: int | None) -> Tensor:
    longer = max(frame.shape[1:])
    if cell is None or longer <= cell:
        return frame
    size = [max(1, round(int(n) * cell / longer)) for n in frame.shape[1:]]
    small = F.interpolate(
        frame[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return small[0].round().clamp(0, 255).to(torch.uint8)


def write_pictures(samples: Iterable[Sample], folder: Path, frames: int = 8) -> list[Path]:
    """One contact sheet, four frames in a row, for each clip that can be read; the files written."""
    written: list[Path] = []
    for sample in samples:
        drawn = draw_sample(sample, frames)
        if drawn is None:
            continue
        name, number = Path(drawn.title).name, 1
        path = folder / f"{name}.png"
        while path in written:
            number += 1
            path = folder / f"{name}-{number}.png"
        rows = [Drawn(drawn.title, drawn.frames[i : i + 4]) for i in range(0, len(drawn.frames), 4)]
        write_clips(rows, path, cell=480)
        written.append(path)
    return written
