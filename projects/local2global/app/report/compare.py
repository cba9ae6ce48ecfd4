"""`l2g compare`: runs on one video side by side, as a page and as a video; an object has one colour in all runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from torch import Tensor

from ...errors import UserError, make_folder
from ...structures import FrameResult
from ..draw import draw
from ..source import Source
from ..video import VideoWriter, write_webp
from .film import find_source, frames_of, make_film, resize
from .matching import (
    LOST,
    MIN_OWNER_IOU,
    Follower,
    difference,
    follow,
    match,
    measure,
    moments,
)
from .page import Content, Lane, Moment, Row, write_page
from .run import Run, common_classes, load, read_run
from .timeline import edges
from .truth import read_truth

#: Longer side of a panel of the video, and height of its title, in pixels.
PANEL_SIDE, TITLE = 640, 28
#: Longer side of a panel of the animated picture in pixels, and its number of frames.
PICTURE_SIDE, PICTURE_FRAMES = 320, 100
_COLUMNS = 3
_GAP = 4
_PAPER, _INK = (255, 255, 255), (28, 29, 31)


class Comparison(NamedTuple):
    """What `compare` writes.

    Attributes:
        page: `compare.html`.
        video: `compare.mp4`.
        picture: `compare.webp`, or None.
        summary: column names and one row of texts per run.
    """

    page: Path
    video: Path
    picture: Path | None
    summary: tuple[list[str], list[list[str]]]


def compare(
    folders: Sequence[Path],
    truth: Path | None,
    output: Path,
    source: str | None = None,
    picture: bool = False,
) -> Comparison:
    """Writes `compare.html`, `compare.mp4` and, on request, `compare.webp`.

    Args:
        folders: output folders of `l2g predict` for one video; at least two, or one and a truth.
        truth: annotations in YouTube-VIS form.
        output: folder of the files.
        source: the video, if it is no longer at the path in the records.
        picture: also write an animated picture of at most 100 frames.

    Raises:
        UserError: if a file cannot be read, or the runs are not of one video.
    """
    if len(folders) + (truth is not None) < 2:
        raise UserError("compare needs two output folders of l2g predict, or one and --truth FILE")
    names = distinct_names(folders)
    runs = [load(read_run(folder, name)) for folder, name in zip(folders, names, strict=True)]
    _check_same_video(runs)
    if truth is not None:
        runs.insert(0, load(read_truth(truth, runs[0])))
    opened, clean = find_source(runs[-1], folders[-1], source)
    if not clean:
        raise UserError(f"{folders[-1]}: the original video is not found; name it with --source")
    overlaps = measure(runs[0], runs[1:])
    matches = [match(overlap) for overlap in overlaps]
    followers = [follow(overlap) for overlap in overlaps] if truth is not None else [{} for _ in overlaps]
    numbers = _numbers(runs, matches)
    rows = _rows(runs, numbers, followers)
    make_folder(output, "--output")
    film = make_film(opened, runs, output / "page.mp4")
    titles = [run.name for run in runs]
    differences = [difference(o, m) for o, m in zip(overlaps, matches, strict=True)]
    summary = _summary(runs, differences, followers, truth is not None)
    content = Content(
        title=f"{runs[0].video}: {' · '.join(titles)}",
        runs=runs,
        rows=rows,
        moments=[
            *_event_moments(rows, runs),
            *moments(differences, titles[1:], titles[0]),
        ],
        moments_note=_note(truth is not None),
        summary=summary,
    )
    return Comparison(
        write_page(output / "compare.html", content, film),
        write_video(output / "compare.mp4", opened, runs, numbers),
        write_picture(output / "compare.webp", opened, runs, numbers) if picture else None,
        summary,
    )


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: its own, or that of its parent where the folders' own names are equal."""
    places = [folder.resolve() for folder in folders]
    while len({place.name for place in places}) < len(places) and all(p.parent != p for p in places):
        if len(set(places)) < len(places):
            break
        if len({place.name for place in places}) > 1:  # some are equal: the last two parts
            return [f"{place.parent.name}/{place.name}" for place in places]
        places = [place.parent for place in places]
    return [place.name for place in places]


def _check_same_video(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.size != first.size or len(run.times) != len(first.times):
            a, b = (f"{len(r.times)} frames of {r.size[1]}x{r.size[0]}" for r in (first, run))
            raise UserError(f"{first.name} has {a}, {run.name} has {b}: these are not runs of one video")


def _numbers(runs: Sequence[Run], matches: Sequence[Mapping[int, int]]) -> list[dict[int, int]]:
    """For every run, the number of each identity's object; that of the reference's identity if they match."""
    numbers = [{identity: identity for identity in runs[0].identities}]
    unused = max(runs[0].identities, default=-1) + 1
    for run, matched in zip(runs[1:], matches, strict=True):
        numbers.append({})
        for identity in run.identities:
            numbers[-1][identity] = matched.get(identity, unused)
            unused += identity not in matched
    return numbers


def _rows(
    runs: Sequence[Run], numbers: Sequence[Mapping[int, int]], followers: Sequence[Mapping[int, Follower]]
) -> list[Row]:
    """One row per object: those of the reference, then those that only other runs report."""
    identities = [
        {number: run.identities[identity] for identity, number in table.items()}
        for run, table in zip(runs, numbers, strict=True)
    ]
    events: list[Mapping[int, Follower]] = [{}, *followers]
    rows = []
    for number in dict.fromkeys(number for table in numbers for number in table.values()):
        happened = [side[number].events if number in side else [] for side in events]
        lanes = [
            Lane(side.get(number), tuple(list_)) for side, list_ in zip(identities, happened, strict=True)
        ]
        rows.append(Row(number, lanes))
    return rows


def _event_moments(rows: Sequence[Row], runs: Sequence[Run]) -> list[Moment]:
    """The identity switches, in order of time."""
    switches = [
        Moment(event.frame, f"{run.name}, object {row.number}: {event.text}")
        for row in rows
        for lane, run in zip(row.lanes, runs, strict=True)
        for event in lane.events
        if event.kind == "switch"
    ]
    return sorted(switches, key=lambda moment: moment.frame)


def _note(has_truth: bool) -> str:
    rule = "The frames with the largest share of object pixels that two runs give different objects, largest first."
    if not has_truth:
        return rule
    return (
        "Identity switches in order of time, then other frames. "
        f"An identity owns a true object on a frame if it has the highest IoU with it, at least {MIN_OWNER_IOU}. "
        f"Switch: the owner changes. Lost: no owner on {LOST} frames. {rule}"
    )


def _summary(
    runs: Sequence[Run],
    differences: Sequence[NDArray[np.float64]],
    followers: Sequence[Mapping[int, Follower]],
    has_truth: bool,
) -> tuple[list[str], list[list[str]]]:
    head = ["Run", "Identities", f"Different from {runs[0].name}"]
    head += ["Switches", "Lost", "Found again", "Owned"] if has_truth else []
    table = [[runs[0].name, str(len(runs[0].identities)), *[""] * (len(head) - 2)]]
    for run, different, objects in zip(runs[1:], differences, followers, strict=True):
        cells = [run.name, str(len(run.identities)), f"{different.mean():.1%}"]
        if has_truth:
            kinds = Counter(event.kind for item in objects.values() for event in item.events)
            owned, visible = (sum(getattr(o, key) for o in objects.values()) for key in ("owned", "visible"))
            cells += [str(kinds[kind]) for kind in ("switch", "lost", "found")]
            cells.append(f"{owned / max(1, visible):.1%}")
        table.append(cells)
    return head, table


def write_video(
    path: Path, source: Source, runs: Sequence[Run], numbers: Sequence[Mapping[int, int]]
) -> Path:
    """Writes the runs side by side, up to three in a row, each with its name above it."""
    sheets = sheets_of(source, runs, numbers)
    first = next(sheets)
    seconds = edges(runs[0].times, runs[0].fps)
    with VideoWriter(path, min(runs[0].fps, 60.0), (first.shape[1], first.shape[2])) as writer:
        writer.write(first, 0.0)
        for t, sheet in enumerate(sheets, start=1):
            writer.write(sheet, float(seconds[t]))
    return path


def write_picture(
    path: Path, source: Source, runs: Sequence[Run], numbers: Sequence[Mapping[int, int]]
) -> Path:
    """Writes the sheets as an animation; a long video is shown at equal steps, in its own speed."""
    step = -(-len(runs[0].times) // PICTURE_FRAMES)
    sheets = itertools.islice(sheets_of(source, runs, numbers, PICTURE_SIDE), 0, None, step)
    images = [Image.fromarray(sheet.permute(1, 2, 0).numpy()) for sheet in sheets]
    write_webp(path, images, round(1000 * step / runs[0].fps))
    return path


def sheets_of(
    source: Source, runs: Sequence[Run], numbers: Sequence[Mapping[int, int]], side: int = PANEL_SIDE
) -> Iterator[Tensor]:
    """Yields (3, H, W) uint8 RGB sheets, one per frame.

    Args:
        source: the video.
        runs: the runs.
        numbers: for each run, the number drawn for each identity.
        side: longer side of a panel in pixels.
    """
    scale = min(1.0, side / max(runs[0].size))
    size = (round(runs[0].size[0] * scale), round(runs[0].size[1] * scale))
    classes = common_classes(runs)
    labels = {key: index for index, key in enumerate(classes)}
    entries = [{"id": key, "name": name} for key, name in classes.items()]
    columns = min(len(runs), _COLUMNS if len(runs) != 4 else 2)
    titles = [_title(run.name, size[1]) for run in runs]
    for frame, *records in zip(frames_of(source, runs[0]), *(run.frames() for run in runs), strict=False):
        small = resize(frame, size)
        panels = []
        for table, title, record in zip(numbers, titles, records, strict=True):
            result = _result(record, table, labels, size)
            panels.append(torch.cat([title, draw(small, result, entries)], dim=1))
        yield _grid(panels, columns)


def _result(
    record: Mapping[str, Any], numbers: Mapping[int, int], labels: Mapping[int, int], size: tuple[int, int]
) -> FrameResult:
    objects = [entry for entry in record["objects"] if entry["id"] in numbers]
    masks = torch.zeros(0, *size, dtype=torch.bool)
    if objects:
        decoded = coco_mask.decode([entry["segmentation"] for entry in objects]).transpose(2, 0, 1)
        whole = torch.from_numpy(np.ascontiguousarray(decoded))
        masks = F.interpolate(whole[None].float(), size, mode="area")[0] >= 0.5
    return FrameResult(
        record["index"],
        torch.tensor([numbers[entry["id"]] for entry in objects], dtype=torch.int64),
        torch.tensor([labels.get(entry["category_id"], 0) for entry in objects], dtype=torch.int64),
        torch.full((len(objects),), torch.nan),
        masks,
        torch.zeros(len(objects), 4),
    )


def _title(text: str, width: int) -> Tensor:
    """(3, TITLE, width) uint8: a name on a white bar."""
    image = Image.new("RGB", (width, TITLE), _PAPER)
    ImageDraw.Draw(image).text((6, 5), text, _INK, ImageFont.load_default(16))
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def _grid(panels: Sequence[Tensor], columns: int) -> Tensor:
    _, height, width = panels[0].shape
    rows = -(-len(panels) // columns)
    shape = (3, rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    sheet = torch.full(shape, 255, dtype=torch.uint8)
    for i, panel in enumerate(panels):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        sheet[:, top : top + height, left : left + width] = panel
    return sheet
