"""`l2g data check`: prints findings as lines and summaries as tables, and draws some clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.table import Table

from ..data.check import Finding, Options, Summary, check_dataset
from ..errors import UserError
from .output import progress_bar, write_json
from .sheets import write_pictures
from .video import open_source

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif"})


def run(
    path: Path,
    *,
    images: Path | None,
    maps: Path | None,
    pictures: Path | None,
    clips: int,
    limit: int,
    headers: bool,
    workers: int,
    json: Path | None,
) -> bool:
    """Checks a dataset, or videos without annotations, and prints the findings.

    See `l2g data check --help` for the arguments.

    Returns:
        Whether there are no errors.

    Raises:
        UserError: if there is nothing to check.
    """
    videos = _find_videos(path)
    if videos:
        return _check_videos(videos)
    with progress_bar() as bar:
        task = bar.add_task("reading frames", total=None)
        options = Options(
            decode=not headers,
            workers=workers,
            samples=0 if pictures is None else clips,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        report = check_dataset(path, images, maps, options)
    for summary in report.summaries:
        _print_summary(summary)
    _print_findings(report.findings, limit)
    if json is not None:
        write_json(json, [asdict(finding) for finding in report.findings])
    if pictures is not None:
        for picture in write_pictures(report.samples, pictures):
            typer.echo(f"picture  {picture}")
    typer.echo(f"{path}: {_count(report.errors, 'error')}, {_count(report.warnings, 'warning')}")
    return not report.errors


def _count(items: list[Finding] | list[str], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _print_findings(findings: list[Finding], limit: int) -> None:
    """Prints errors, then warnings; at most `limit` lines per kind, 0 for all."""
    for severity in ("error", "warning"):
        counts: Counter[str] = Counter()
        for finding in (f for f in findings if f.severity == severity):
            counts[finding.kind] += 1
            if not limit or counts[finding.kind] <= limit:
                typer.echo(f"{severity:8} {finding}")
        for kind, count in counts.items():
            if limit and count > limit:
                more = f"... and {count - limit} more of this kind ({kind}); --limit 0 shows all"
                typer.echo(f"{severity:8} {more}")


def _print_summary(summary: Summary) -> None:
    console = Console()
    facts = Table(title=f"{summary.file.name}: {summary.layout}", title_justify="left", show_header=False)
    for name, value in _facts(summary):
        facts.add_row(name, value)
    console.print(facts)
    if summary.instances:
        classes = Table("class", "instances")
        classes.columns[1].justify = "right"
        for name, count in summary.instances.most_common():
            classes.add_row(name, str(count))
        console.print(classes)


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    word = "images" if summary.layout == "COCO" else "videos"
    yield "frames in", str(summary.images) if summary.images else "not found"
    yield word, str(summary.videos)
    if word == "videos":
        yield "frames", f"{summary.frames}{_range(summary.lengths, 'per video')}"
    sizes = [f"{height}x{width} ({count})" for (height, width), count in summary.sizes.most_common(4)]
    more = f" and {len(summary.sizes) - 4} more" if len(summary.sizes) > 4 else ""
    yield "sizes", ", ".join(sizes) + more
    if not summary.annotated:
        yield "annotations", "none, as in a public test set"
        return
    yield "instances", f"{len(summary.tracks)} in {len(summary.instances)} classes"
    if summary.crowds:
        yield "ignore regions", str(summary.crowds)
    if word == "videos":
        absences = summary.absences
        yield "visible in", f"{sum(summary.tracks)} frames{_range(summary.tracks, 'per instance')}"
        frames = f", for {sum(absences)} frames{_range(absences, 'each')}" if absences else ""
        yield "absent and back", f"{len(absences)} instances{frames}"


def _range(values: list[int], unit: str) -> str:
    return f" ({min(values)} to {max(values)} {unit}, median {median(values):g})" if values else ""


def _find_videos(path: Path) -> list[Path]:
    """The video files at a path without annotation files."""
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
        return [path]
    if not path.is_dir() or any(path.glob("*.json")):
        return []
    return sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)


def _check_videos(paths: list[Path]) -> bool:
    """Decodes all frames of videos without annotations; returns whether there are no errors."""
    table = Table("video", "frames", "size", "frames/s")
    errors: list[str] = []
    for path in paths:
        try:
            source = open_source(path)
            frames = sum(1 for _ in source)
        except UserError as error:
            errors.append(str(error))
            continue
        height, width = source.size
        table.add_row(path.name, str(frames), f"{height}x{width}", f"{float(source.fps):g}")
    Console().print(table)
    for line in errors:
        typer.echo(f"error    {line}")
    typer.echo(f"{len(paths)} video(s) without annotations: {_count(errors, 'error')}")
    return not errors
