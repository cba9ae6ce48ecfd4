"""The page of one or more runs of a video: player, timelines, table; written as one HTML file.

A `Row` is one object.  It has a `Lane` for every run, which shows the identity that the run gives the object.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ...files import write_text
from ..draw import colour
from .film import CUT_RULE, MAX_INSIDE, Film
from .outlines import UNITS, cell_size, varints, zigzag
from .run import Identity, Run
from .timeline import HEIGHT, WIDTH, curve, edges, gap_path, gaps, positions


@dataclass(frozen=True)
class Event:
    """A moment on a lane: what happened to the object in a run.

    Attributes:
        frame: its frame.
        kind: "switch", "lost" or "found".
        text: one sentence.
    """

    frame: int
    kind: str
    text: str


@dataclass(frozen=True)
class Lane:
    """An object in one run.

    Attributes:
        identity: None if the run does not report the object.
        events: in order of frames.
    """

    identity: Identity | None
    events: Sequence[Event] = ()


@dataclass(frozen=True)
class Row:
    """An object.

    Attributes:
        number: decides its colour, and is drawn beside its mask.
        lanes: one per run.
    """

    number: int
    lanes: Sequence[Lane]

    @property
    def first_lane(self) -> int:
        """Position of the first run that reports the object."""
        return next(i for i, lane in enumerate(self.lanes) if lane.identity is not None)


@dataclass(frozen=True)
class Moment:
    """An entry of the list of moments to look at.

    Attributes:
        frame: its frame.
        text: what is to be seen.
    """

    frame: int
    text: str


@dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        title: heading.
        runs: at least one, loaded.
        rows: the objects.
        drawn: whether the video already shows masks; then the player draws highlighted masks only.
        moments: list of moments, best first.
        moments_note: how the moments were chosen.
        summary: column names and one row of texts per run.
        queries: `code`, `frames` and `strips` of `queries.explain`, or None.
    """

    title: str
    runs: Sequence[Run]
    rows: Sequence[Row]
    drawn: bool = False
    moments: Sequence[Moment] = ()
    moments_note: str = ""
    summary: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    queries: Mapping[str, Any] | None = None


def asset(name: str) -> Markup:
    """The text of a template folder's style sheet or script, which needs no escape."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


@cache
def environment() -> Environment:
    """Templates of the package; every inserted text is escaped."""
    loader = PackageLoader("local2global.app.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.globals["asset"] = asset
    return made


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Fills a template; its policy allows the given scripts only, and no access to a network.

    Args:
        template: its file name.
        scripts: file names of the scripts, which the template includes joined, as `script`.
        values: variables of the template.
    """
    script = "\n".join(map(asset, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment().get_template(template).render(script=Markup(script), digest=digest, **values)


def write_page(path: Path, content: Content, film: Film) -> Path:
    """Writes the page; it includes the video if that is small, else it refers to the file beside it."""
    inside = film.path.stat().st_size <= MAX_INSIDE
    video = base64.b64encode(film.path.read_bytes()).decode("ascii") if inside else None
    text = render(
        "page.html",
        ["player.js", "page.js"],
        content=content,
        rows=[_row(row, content, film) for row in content.rows],
        classes=sorted({name for row in content.rows for name in [_class_name(row, content.runs)]}),
        facts=_facts(content),
        cuts=[(t, _clock(content, t)) for t in film.cuts],
        cut_rule=CUT_RULE,
        cut_path=_cut_path(film.cuts, content),
        moments=[(moment, _clock(content, moment.frame)) for moment in content.moments],
        data=_data(content, film, None if inside else film.path.name),
        video=video,
        box=(WIDTH, HEIGHT),
    )
    write_text(path, text)
    if inside:
        film.path.unlink()
    return path


def _edges(content: Content) -> NDArray[np.float64]:
    return edges(content.runs[0].times, content.runs[0].fps)


def _clock(content: Content, frame: int) -> str:
    return clock(float(_edges(content)[frame]))


def clock(seconds: float) -> str:
    """A time such as 1:05.2."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _facts(content: Content) -> list[str]:
    run, end = content.runs[0], float(_edges(content)[-1])
    height, width = run.size
    objects = len(content.rows)
    return [
        f"{len(run.times)} frames",
        clock(end),
        f"{width} × {height} pixels",  # noqa: RUF001 - the sign of a product
        f"{objects} object{'' if objects == 1 else 's'}",
    ]


def _cut_path(cuts: Sequence[int], content: Content) -> str:
    x = positions(_edges(content))
    return "".join(f"M{x[t]:.5g} 0V{HEIGHT}" for t in cuts)


def _class_name(row: Row, runs: Sequence[Run]) -> str:
    identity = row.lanes[row.first_lane].identity
    assert identity is not None
    return runs[row.first_lane].class_name(identity.category_id)


def _row(row: Row, content: Content, film: Film) -> dict[str, Any]:
    """The variables of one row of the table; the numbers are those of the first run that reports the object."""
    lane = row.first_lane
    identity, run = row.lanes[lane].identity, content.runs[lane]
    assert identity is not None
    first, last = identity.frames[0], identity.frames[-1]
    scores = np.frombuffer(identity.scores, np.float32)
    return {
        "number": row.number,
        "name": _class_name(row, content.runs),
        "color": "#{:02x}{:02x}{:02x}".format(*colour(row.number)),
        "thumbnail": film.thumbnails.get((lane, identity.id)),
        "best": identity.frames[identity.best],
        "first": (first, _clock(content, first)),
        "last": (last, _clock(content, last)),
        "frames": len(identity.frames),
        "score": float(scores.mean()),
        "gaps": len(gaps(identity)),
        "strip": content.queries["strips"].get(identity.id) if content.queries else None,
        "lanes": [_lane(item, content, index) for index, item in enumerate(row.lanes)],
        "label": f"{_class_name(row, content.runs)}, {run.name}",
    }


def _lane(lane: Lane, content: Content, index: int) -> dict[str, Any]:
    identity, run, frame_edges = lane.identity, content.runs[index], _edges(content)
    x = positions(frame_edges)
    events = [
        (event, f"{frame_edges[event.frame] / frame_edges[-1] * 100:.3f}", _clock(content, event.frame))
        for event in lane.events
    ]
    if identity is None:
        return {"run": run.name, "id": None, "events": events, "text": "not reported"}
    changes = [
        (f"{x[t]:.5g}", f"{run.class_name(a)} becomes {run.class_name(b)} at {_clock(content, t)}")
        for (_, a), (t, b) in zip(identity.classes, identity.classes[1:], strict=False)
    ]
    holes = gaps(identity)
    text = (
        f"{run.class_name(identity.category_id)}, id {identity.id}: from {_clock(content, identity.frames[0])} to "
        f"{_clock(content, identity.frames[-1])}, best score {identity.scores[identity.best]:.2f} at "
        f"{_clock(content, identity.frames[identity.best])}, {len(holes)} gap{'' if len(holes) == 1 else 's'}"
    )
    return {
        "run": run.name,
        "id": identity.id,
        "curve": curve(identity, x),
        "gap_path": gap_path(identity, x),
        "changes": changes,
        "events": events,
        "text": text,
    }


def _data(content: Content, film: Film, video: str | None) -> dict[str, Any]:
    """The data of the player; see `player.js` for the form."""
    run = content.runs[0]
    cell = cell_size(run.size)
    lanes = [
        (position, number, lane.identity)
        for number, row in enumerate(content.rows)
        for position, lane in enumerate(row.lanes)
        if lane.identity is not None
    ]
    milliseconds = np.rint(_edges(content) * 1000).astype(np.int64)
    differences: NDArray[np.int64] = np.diff(milliseconds)
    code = bytearray(varints(zigzag(differences)))
    for _, _, identity in lanes:
        code += encode_identity(identity, cell)
    height, width = run.size
    return {
        "size": [width, height],
        "unit": cell / UNITS,
        "frames": len(run.times),
        "fps": run.fps,
        "panels": [item.name for item in content.runs],
        "rows": [
            {
                "number": row.number,
                "color": list(colour(row.number)),
                "label": f"{row.number} {_class_name(row, content.runs)}",
            }
            for row in content.rows
        ],
        "tracks": [[position, number] for position, number, _ in lanes],
        "drawn": content.drawn,
        "video": video,
        "code": base64.b64encode(zlib.compress(bytes(code), 9)).decode("ascii"),
    }


def encode_identity(identity: Identity, cell: int) -> bytes:
    """Frames, scores, boxes and outlines of one identity as unsigned LEB128 numbers.

    The number of intervals, then for each the gap before it and its length; one score in [0, 255] per frame; the left,
    top, right and bottom edges in grid units, each as differences between frames; the number of outlines, then for each
    the frames since the last outline, counted in frames with a report, and `outline_bytes`.
    """
    spans = identity.spans()
    previous = np.array([-1] + [last for _, last in spans[:-1]])
    starts, ends = np.array(spans).T
    code = bytearray(varints([len(spans)]))
    code += varints(np.stack([starts - previous - 1, ends - starts + 1], 1).ravel())
    scores = np.frombuffer(identity.scores, np.float32)
    code += np.rint(scores.clip(0, 1) * 255).astype(np.uint8).tobytes()
    boxes = np.frombuffer(identity.boxes, np.float32).reshape(-1, 4)
    units = np.rint(boxes.T.astype(np.float64) * (UNITS / cell)).astype(np.int64)
    for edge in units:
        code += varints(zigzag(np.diff(edge, prepend=0)))
    code += varints([len(identity.outlines)])
    last = 0
    for position, outline in identity.outlines:
        code += varints([position - last]) + outline
        last = position
    return bytes(code)
