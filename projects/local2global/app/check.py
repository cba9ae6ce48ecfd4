"""`l2g data check`: findings as lines, summaries as tables, some clips as pictures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..data.check import Finding, Options, Report, Summary, check_dataset
from ..errors import UserError
from .sheets import write_pictures
from .video import open_source

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif"})


@dataclass(frozen=True)
class Wanted:
    """What a check is asked for; see `l2g data check --help`."""

    images: Path | None
    maps: Path | None
    pictures: Path | None
    clips: int
    limit: int
    headers: bool
    workers: int
    json: Path | None


def run(path: Path, wanted: Wanted) -> bool:
    """Checks a dataset, or videos without annotations, and prints what is found; whether there is no error.

    Raises:
        UserError: if there is nothing to check.
    """
    sources = _sources(path)
    if sources:
        return _check_sources(sources)
    with _progress() as progress:
        options = Options(
            decode=not wanted.headers,
            workers=wanted.workers,
            samples=wanted.clips if wanted.pictures is not None else 0,
            progress=progress,
        )
        report = check_dataset(path, wanted.images, wanted.maps, options)
    for summary in report.summaries:
        _print_summary(summary)
    _print_findings(report.findings, wanted.limit)
    if wanted.json is not None:
        _write_json(report, wanted.json)
    if wanted.pictures is not None:
        for picture in write_pictures(report.samples, wanted.pictures):
            typer.echo(f"picture  {picture}")
    typer.echo(f"{path}: {_number(len(report.errors), 'error')}, {_number(len(report.warnings), 'warning')}")
    return not report.errors


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _number(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _print_findings(findings: list[Finding], limit: int) -> None:
    """Errors first; of each kind at most `limit` lines, all for 0."""
    for severity in ("error", "warning"):
        shown: Counter[str] = Counter()
        for finding in (f for f in findings if f.severity == severity):
            shown[finding.kind] += 1
            if not limit or shown[finding.kind] <= limit:
                typer.echo(f"{severity:8} {finding}")
        for kind, number in shown.items():
            if limit and number > limit:
                typer.echo(
                    f"{severity:8} ... and {number - limit} more of this kind ({kind}); --limit 0 shows all"
                )


def _print_summary(summary: Summary) -> None:
    console = Console()
    facts = Table(title=f"{summary.file.name}: {summary.layout}", title_justify="left", show_header=False)
    for name, value in _facts(summary):
        facts.add_row(name, value)
    console.print(facts)
    if summary.instances:
        classes = Table("class", "instances")
        classes.columns[1].justify = "right"
        for name, number in summary.instances.most_common():
            classes.add_row(name, str(number))
        console.print(classes)


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    word = "images" if summary.layout == "COCO" else "videos"
    yield "frames in", str(summary.images) if summary.images else "not found"
    yield word, str(summary.videos)
    if word == "videos":
        yield "frames", f"{summary.frames}{_range(summary.lengths, ' per video')}"
    sizes = [f"{height}x{width} ({number})" for (height, width), number in summary.sizes.most_common(4)]
    more = f" and {len(summary.sizes) - 4} more" if len(summary.sizes) > 4 else ""
    yield "sizes", ", ".join(sizes) + more
    if not summary.annotated:
        yield "annotations", "none, as in a public test set"
        return
    yield "instances", f"{len(summary.tracks)} in {len(summary.instances)} classes"
    if summary.crowds:
        yield "ignore regions", str(summary.crowds)
    if word == "videos":
        yield "seen in", f"{sum(summary.tracks)} frames{_range(summary.tracks, ' per instance')}"
        away = (
            f", for {sum(summary.absences)} frames{_range(summary.absences, ' each')}"
            if summary.absences
            else ""
        )
        yield "away and back", f"{len(summary.absences)} instances{away}"


def _range(values: list[int], what: str) -> str:
    if not values:
        return ""
    return f" ({min(values)} to {max(values)}{what}, median {median(values):g})"


def _write_json(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps([asdict(finding) for finding in report.findings], indent=1))
    os.replace(temporary, path)


def _sources(path: Path) -> list[Path]:
    """The video files that a path without annotations means."""
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return [path]
    if not path.is_dir() or any(path.glob("*.json")):
        return []
    return sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)


def _check_sources(paths: list[Path]) -> bool:
    """Reads videos without annotations from end to end."""
    table = Table("video", "frames", "size", "frames/s")
    errors: list[str] = []
    for path in paths:
        try:
            source = open_source(path)
            count = sum(1 for _ in source)
        except UserError as error:
            errors.append(str(error))
            continue
        height, width = source.size
        table.add_row(path.name, str(count), f"{height}x{width}", f"{float(source.fps):g}")
    Console().print(table)
    for line in errors:
        typer.echo(f"error    {line}")
    typer.echo(f"{len(paths)} video(s) without annotations: {_number(len(errors), 'error')}")
    return not errors
