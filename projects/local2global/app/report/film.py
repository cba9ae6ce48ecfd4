"""The video of a page: a small copy of the source, pictures of objects, and scene cuts, in one pass over the frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from ...errors import UserError
from ..source import Source, select
from ..video import VideoWriter, open_source
from .run import Run

#: Longer side of the copy in pixels.
COPY_SIDE = 854
#: A page includes a video of at most this many bytes; a larger one is a file beside it.
MAX_INSIDE = 20_000_000
#: Scene cut: between two frames, the histograms of 4 x 4 x 4 RGB bins differ in more than this part of the pixels.
CUT = 0.5
CUT_RULE = (
    "a frame whose colour histogram (4 x 4 x 4 bins) differs from that before it in over half of the pixels"
)
_THUMBNAIL = (96, 72)  # width, height in pixels


@dataclass(frozen=True)
class Film:
    """What the pages need of a video.

    Attributes:
        path: the copy, an H.264 mp4; its frames have the time stamps of the record.
        cuts: first frames of scenes, without frame 0.
        thumbnails: JPEG as a data URL by (position of the run, identity).
    """

    path: Path
    cuts: list[int]
    thumbnails: dict[tuple[int, int], str]


def find_source(run: Run, folder: Path, named: str | None) -> tuple[Source, bool]:
    """The video of a run, and whether it has no masks drawn in it.

    The first of these that exists: the video that the user names, the one in the record if its frames are still the
    same, `video.mp4` in the folder.

    Raises:
        UserError: if none can be read, or its frames differ from the record's in size.
    """
    source = _selected(open_source(named), run) if named is not None else _recorded_source(run)
    clean = source is not None
    drawn = folder / "video.mp4"
    if source is None:
        if not drawn.is_file():
            raise UserError(f"{folder}: its video is not found; name it with --source")
        source = open_source(drawn)
    height, width = run.size
    padded = (height + height % 2, width + width % 2)  # the size of video.mp4
    if source.size != run.size and (clean or source.size != padded):
        size = f"{source.size[1]}x{source.size[0]}"
        raise UserError(f"{named or source.path}: frames of {size}, but the masks have {width}x{height}")
    return source, clean


def _recorded_source(run: Run) -> Source | None:
    if run.source is None or not Path(run.source[0]).exists():
        return None
    try:
        source = _selected(open_source(run.source[0]), run)
    except UserError:
        return None
    return source if source.identity == run.source[1] else None


def _selected(source: Source, run: Run) -> Source:
    """The frames that the record's identity of the source selects by start, end, every and size."""
    options = run.source[1].split()[1:] if run.source else []
    if len(options) != 4:
        return source
    try:
        start, end, every, size = (None if option == "None" else float(option) for option in options)
        number = None if size is None else int(size)
        return select(source, start or 0.0, end, int(every or 1), number)
    except ValueError as error:
        raise UserError(f"{run.name}: stream.json selects frames that its video does not have") from error


def frames_of(source: Source, run: Run) -> Iterator[Tensor]:
    """The frames of a record, (3, H, W) uint8 each.

    Raises:
        UserError: if the source has fewer frames.
    """
    height, width = run.size
    count = 0
    for count, frame in enumerate(source, start=1):
        yield frame[:, :height, :width]
        if count == len(run.times):
            return
    raise UserError(f"{source.name}: {count} frames, but {run.name} has {len(run.times)}")


def make_film(source: Source, runs: list[Run], path: Path) -> Film:
    """Writes the copy and collects thumbnails and cuts.

    Args:
        source: the video.
        runs: the runs; thumbnails show each identity on its best frame, on a pale background.
        path: the copy.
    """
    wanted: dict[int, list[tuple[int, int, Mapping[str, Any]]]] = {}
    for position, run in enumerate(runs):
        for identity in run.identities.values():
            assert identity.best_mask is not None
            place = wanted.setdefault(identity.frames[identity.best], [])
            place.append((position, identity.id, identity.best_mask))
    thumbnails, cuts, previous = {}, [], None
    height, width = runs[0].size
    scale = min(1.0, COPY_SIDE / max(height, width))
    size = (max(2, round(height * scale)), max(2, round(width * scale)))
    with VideoWriter(path, min(runs[0].fps, 60.0), size) as writer:
        for t, frame in enumerate(frames_of(source, runs[0])):
            small = resize(frame, size)
            writer.write(small, float(runs[0].times[t] - runs[0].times[0]))
            histogram = _histogram(small)
            if previous is not None and np.abs(histogram - previous).sum() / 2 > CUT:
                cuts.append(t)
            previous = histogram
            for position, identity_id, mask in wanted.get(t, ()):
                thumbnails[position, identity_id] = _thumbnail(frame, mask)
    return Film(path, cuts, thumbnails)


def resize(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """A (3, H, W) uint8 frame at another (height, width)."""
    if tuple(frame.shape[1:]) == size:
        return frame
    small = F.interpolate(frame[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def _histogram(frame: Tensor) -> NDArray[np.float64]:
    """(64,) share of the pixels in each of 4 x 4 x 4 bins of RGB."""
    red, green, blue = (frame >> 6).long()
    counts = torch.bincount((red * 16 + green * 4 + blue).flatten(), minlength=64)
    share: NDArray[np.float64] = (counts.double() / counts.sum()).numpy()
    return share


def _thumbnail(frame: Tensor, rle: Mapping[str, Any]) -> str:
    """A JPEG of the object in its surroundings; pixels outside of the mask are pale."""
    mask = coco_mask.decode(rle) == 1
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, *mask.shape[::-1])
    left, top, right, bottom = _window(box, mask.shape)
    pixels = frame[:, top:bottom, left:right].permute(1, 2, 0).numpy()
    outside = ~mask[top:bottom, left:right, None]
    image = Image.fromarray(np.where(outside, pixels // 3 + 150, pixels).astype(np.uint8))
    image.thumbnail(_THUMBNAIL)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _window(box: tuple[int, int, int, int], size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box with a margin and the proportions of a thumbnail, moved into the frame, as far as that is possible."""
    left, top, right, bottom = box
    ratio = _THUMBNAIL[0] / _THUMBNAIL[1]
    width = max((right - left) * 1.25, (bottom - top) * 1.25 * ratio, 8)
    height = width / ratio
    edges = []
    for centre, length, limit in (
        ((left + right) / 2, width, size[1]),
        ((top + bottom) / 2, height, size[0]),
    ):
        start = min(max(0.0, centre - length / 2), max(0.0, limit - length))
        edges.append((int(start), int(min(limit, max(start + length, start + 1)))))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]
