"""Pictures of annotated clips: contact sheets with one clip per row, and overlay videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.check import Sample
from ..errors import UserError
from ..files import atomic_path
from ..structures import Clip, FrameResult
from .draw import Look, draw
from .source import unique_name
from .video import VideoWriter

FPS = 4  # frames per second of an overlay video: slow enough to inspect every mask
_GREY = (245, 245, 245)  # colour of the padding
_GAP = 2  # pixels between frames


@dataclass(frozen=True)
class Drawn:
    """A clip with its annotations drawn.

    Attributes:
        title: one line of text.
        frames: (3, H, W) uint8 RGB each.
    """

    title: str
    frames: tuple[Tensor, ...]


def draw_truth(
    frame: Tensor,
    labels: Tensor,
    ids: Tensor,
    masks: Tensor,
    boxes: Tensor | None,
    classes: Sequence[dict[str, object]],
) -> Tensor:
    """Draws true masks with id and class name, and boxes unless None.

    Args:
        frame: (3, H, W) uint8 RGB.
        labels: (M,) positions in `classes`.
        ids: (M,) identities.
        masks: (M, H, W) bool.
        boxes: (M, 4) (cx, cy, w, h) in [0, 1]; boxes of empty masks are not drawn.
        classes: {id, name} of every class.
    """
    scores = torch.full(labels.shape, torch.nan)
    places = torch.zeros(len(labels), 4) if boxes is None else boxes
    look = Look(hidden=frozenset() if boxes is not None else frozenset({"boxes"}))
    return draw(frame, FrameResult(0, ids, labels, scores, masks, places), classes, look)


def draw_clip(clip: Clip, classes: Sequence[dict[str, object]]) -> Drawn:
    """Draws a training clip and its targets; the title lists frames, size and objects."""
    targets = clip.targets
    assert targets is not None
    frames = tuple(
        draw_truth(frame, targets.labels, targets.ids, targets.masks[:, t], targets.boxes[:, t], classes)
        for t, frame in enumerate(clip.frames)
    )
    names = [classes[label]["name"] for label in targets.labels.tolist()]
    objects = ", ".join(f"#{i} {name}" for i, name in zip(targets.ids.tolist(), names, strict=True))
    height, width = frames[0].shape[1:]
    indices = ", ".join(map(str, clip.frame_ids))
    title = f"video {clip.video_id}, frames {indices}, {height}x{width}: {objects or 'no instance'}"
    return Drawn(title, frames)


def draw_sample(sample: Sample, count: int) -> Drawn | None:
    """Draws `count` evenly spaced frames of a video; unreadable frames are skipped, None if all are."""
    video, frames = sample.video, []
    for t in np.linspace(0, video.length - 1, min(count, video.length)).round().astype(int).tolist():
        try:
            frame = video.frame(t)
        except UserError:
            continue
        frames.append(draw_truth(frame, video.labels, video.ids, video.masks(t), None, sample.classes))
    return Drawn(video.name, tuple(frames)) if frames else None


def write_clips(clips: Sequence[Drawn], path: Path, cell: int | None = None) -> None:
    """Writes clips to one file atomically: a .mp4 shows them in turn, a .png or .jpg has one clip per row.

    Frames smaller than the largest are padded with grey at the right and at the bottom.

    Args:
        clips: at least one clip.
        path: the file.
        cell: maximal length of a frame's longer edge in pixels; larger frames are downscaled.

    Raises:
        UserError: if the path has another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in (".mp4", ".png", ".jpg", ".jpeg"):
        raise UserError(f"{path}: an overlay is a .mp4, a contact sheet a .png or .jpg file.")
    rows = [[_image(frame, cell) for frame in clip.frames] for clip in clips]
    width, height = (max(image.size[axis] for row in rows for image in row) for axis in (0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".mp4":
        with VideoWriter(path, FPS, (height, width)) as writer:
            for image in (image for row in rows for image in row):
                padded = Image.new("RGB", (width, height), _GREY)
                padded.paste(image)
                writer.write(torch.from_numpy(np.array(padded)).permute(2, 0, 1))
        return
    columns = max(len(row) for row in rows)
    size = (columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    for i, j in itertools.product(range(len(rows)), range(columns)):
        left, top = j * (width + _GAP), i * (height + _GAP)
        sheet.paste(_GREY, (left, top, left + width, top + height))
        if j < len(rows[i]):
            sheet.paste(rows[i][j], (left, top))
    with atomic_path(path) as partial:
        sheet.save(partial, "PNG" if suffix == ".png" else "JPEG")


def _image(frame: Tensor, cell: int | None) -> Image.Image:
    image = Image.fromarray(frame.cpu().permute(1, 2, 0).contiguous().numpy())
    if cell is not None:
        image.thumbnail((cell, cell))
    return image


def write_pictures(samples: Iterable[Sample], folder: Path) -> list[Path]:
    """Writes a contact sheet of up to eight frames, four per row, for each readable video; returns the files."""
    written: list[Path] = []
    for sample in samples:
        drawn = draw_sample(sample, 8)
        if drawn is None:
            continue
        name = unique_name(Path(drawn.title).name, [path.stem for path in written])
        path = folder / f"{name}.png"
        rows = [Drawn(drawn.title, drawn.frames[i : i + 4]) for i in range(0, len(drawn.frames), 4)]
        write_clips(rows, path, cell=480)
        written.append(path)
    return written
