"""The page of training runs: curves of losses, scores, learning rate, memory and skipped clips, runs overlaid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.metrics import read_entries
from ...errors import UserError
from ...files import write_text
from .compare import distinct_names
from .page import render

#: Size of a chart, and its margins left and bottom, in units of the view box.
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 200, 46, 20
#: Points per curve; longer ones are thinned out.
POINTS = 400
#: Curves that need no group of their own, in the order of the page; other values are grouped by name.
_SINGLE = {
    "total_loss": "total loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "memory_mb": "memory in MB",
    "skipped_clips": "skipped clips",
    "time": "seconds per iteration",
}
_IGNORED = ("iteration", "data_time", "eta_seconds")
#: Of the runs: each has a contrast of at least 3 with the light and the dark page.
_COLOURS = ("#2f7de1", "#d9641e", "#2a9461", "#b05ad1", "#a8811a", "#d94a7b", "#1f93a6", "#7a7f87")
_DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")


@dataclass(frozen=True)
class Curve:
    """Values of one name in one run: `points` are (iteration, value), finite."""

    run: int
    name: str
    points: Sequence[tuple[int, float]]


def is_training(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (folder / "metrics.jsonl").is_file()


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(iteration, value) by name; values that are not finite, undefined scores and damaged lines are left out.

    Raises:
        UserError: if the file holds no entry.
    """
    values: dict[str, list[tuple[int, float]]] = {}
    for entry in read_entries(path):
        for name, value in entry.items():
            is_undefined = "/" in name and value == -1  # AP of a size that no object has
            if name in _IGNORED or is_undefined:
                continue
            if isinstance(value, (int, float)) and abs(value) < 1e300:
                values.setdefault(name, []).append((entry["iteration"], float(value)))
    if not values:
        raise UserError(f"{path}: no entry of a training's metrics")
    return values


def group(name: str) -> str:
    """The chart that shows a value: "loss_cls_0" and "loss_cls_local" are in "loss_cls", "segm/AP" in "segm"."""
    if name in _SINGLE:
        return _SINGLE[name]
    loss = re.fullmatch(r"(loss_[a-z]+?)(_(\d+|local))?", name)
    return loss[1] if loss else name.rpartition("/")[0] or name


def write_curves(folders: Sequence[Path]) -> Path:
    """Writes `report.html` into the first of several folders of training runs.

    Raises:
        UserError: if a file of metrics is invalid or empty.
    """
    names = distinct_names(folders)
    charts: dict[str, list[Curve]] = {}
    for run, folder in enumerate(folders):
        for name, points in read_metrics(folder / "metrics.jsonl").items():
            charts.setdefault(group(name), []).append(Curve(run, name, points))
    first = list(_SINGLE.values())
    order = sorted(charts, key=lambda title: (first.index(title) if title in first[:1] else 1, _rank(title)))
    made = [_chart(title, charts[title]) for title in order]
    text = render(
        "training.html",
        ["training.js"],
        runs=[(name, _COLOURS[i % len(_COLOURS)], str(folders[i])) for i, name in enumerate(names)],
        charts=made,
        box=(WIDTH, HEIGHT, LEFT, BOTTOM),
        data=[{"curves": chart["data"], "range": chart["range"]} for chart in made],
    )
    path = folders[0] / "report.html"
    write_text(path, text)
    return path


def _rank(title: str) -> tuple[int, str]:
    """Losses, then scores, then the rest."""
    single = list(_SINGLE.values())
    return (2, f"{single.index(title)}") if title in single else (0 if title.startswith("loss") else 1, title)


def _chart(title: str, curves: Sequence[Curve]) -> dict[str, Any]:
    """The variables of one chart."""
    iterations = [iteration for curve in curves for iteration, _ in curve.points]
    left, right = min(iterations), max(max(iterations), min(iterations) + 1)
    low, high = _range([value for curve in curves for _, value in curve.points])
    names = sorted({curve.name for curve in curves}, key=lambda name: (len(name), name))
    lines, data = [], []
    for curve in curves:
        index = names.index(curve.name)
        points = curve.points[:: -(-len(curve.points) // POINTS)]
        if points[-1] != curve.points[-1]:
            points = [*points, curve.points[-1]]
        color = _COLOURS[curve.run % len(_COLOURS)]
        path = "L".join(
            f"{LEFT + (x - left) / (right - left) * (WIDTH - LEFT):.1f} "
            f"{(HEIGHT - BOTTOM) * (1 - (min(y, high) - low) / (high - low)):.1f}"
            for x, y in points
        )
        if len(points) == 1:
            path += f"H{WIDTH}"  # a single value would be invisible
        dash = _DASHES[index % len(_DASHES)] if index else ""
        lines.append({"d": f"M{path}", "color": color, "dash": dash, "main": index == 0})
        data.append({"run": curve.run, "name": curve.name, "points": [list(p) for p in points]})
    return {
        "title": title,
        "names": [(name, _DASHES[i % len(_DASHES)] if i else "") for i, name in enumerate(names)],
        "lines": lines,
        "ticks": [
            (f"{(HEIGHT - BOTTOM) * (1 - part):.1f}", _number(low + part * (high - low)))
            for part in (0, 0.5, 1)
        ],
        "range": [left, right],
        "last": [
            (curve.run, curve.name, _number(curve.points[-1][1]))
            for curve in curves
            if curve.name == names[0]
        ],
        "data": data,
    }


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Axis of values: 0 is included, and the highest percent may be cut off, so that the first steps do not decide."""
    ordered = sorted(values)
    low = min(0.0, ordered[0])
    high = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return low, high if high > low else low + 1.0


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else re.sub("e-0*", "e-", f"{value:.1e}")
