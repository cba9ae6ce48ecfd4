"""The result of a check: problems with file, entry and remedy, and a summary of the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..readers.archives import ImageRoot
from ..readers.entries import format_problem
from ..readers.records import AnnotatedVideo

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        severity: "error" for what a reader or a scorer rejects or gets wrong, else "warning".
        kind: a short name shared by similar problems, e.g. "missing-frame".
        file: the file to look into.
        where: the entry in it, "" for the whole file.
        problem: what is wrong.
        fix: what to do.
    """

    severity: str
    kind: str
    file: str
    where: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return format_problem(self.file, self.where, self.problem, self.fix)


@dataclass
class Summary:
    """Statistics of one annotation file.

    Attributes:
        file: the annotation file.
        layout: its format, in words.
        images: the folder of its frames.
        videos: videos, or images of a COCO file.
        frames: frames of all videos.
        instances: instances per class name (tracks, or annotations of a COCO file), without crowds.
        crowds: ignore regions.
        sizes: the number of videos with frames of (height, width).
        lengths: the number of frames of each video.
        tracks: the number of frames in which each instance is visible.
        absences: for each instance that disappears and returns, the number of frames in between.
        annotated: whether the file has annotations at all.
    """

    file: Path
    layout: str
    images: ImageRoot | None
    videos: int = 0
    frames: int = 0
    instances: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)
    absences: list[int] = field(default_factory=list)
    annotated: bool = True

    def add_video(self, size: tuple[int, int] | None, length: int) -> None:
        """Counts a video."""
        self.videos += 1
        self.frames += length
        self.sizes[size or (0, 0)] += 1
        self.lengths.append(length)

    def add_track(self, class_name: str, present: Sequence[bool]) -> None:
        """Counts an instance by the frames in which it is visible."""
        self.instances[class_name] += 1
        visible = [t for t, value in enumerate(present) if value]
        self.tracks.append(len(visible))
        absent = visible[-1] - visible[0] + 1 - len(visible) if visible else 0
        if absent:
            self.absences.append(absent)


@dataclass(frozen=True)
class Sample:
    """A clip to draw: its frames and the masks that could be read.

    Attributes:
        video: the frames and masks.
        classes: {id, name}; a track's label is a position in it.
    """

    video: AnnotatedVideo
    classes: list[dict[str, Any]]


class Report:
    """All findings, in the order of the check, with a summary of each annotation file and clips to draw."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.summaries: list[Summary] = []
        self.samples: list[Sample] = []

    @property
    def errors(self) -> list[Finding]:
        """The findings that make a dataset unusable."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that deserve a look."""
        return [f for f in self.findings if f.severity == "warning"]


@dataclass(frozen=True)
class Notes:
    """The `Problems` of one annotation file, recorded in a report.

    Attributes:
        report: the report.
        file: the name of the annotation file.
    """

    report: Report
    file: str

    def error(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Records an error."""
        self.report.findings.append(Finding("error", kind, file or self.file, where, problem, fix))

    def warn(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Records a warning."""
        self.report.findings.append(Finding("warning", kind, file or self.file, where, problem, fix))


@dataclass(frozen=True)
class Options:
    """How thoroughly to check.

    Attributes:
        decode: decode every image, which is the only way to detect truncated files; else only headers are read.
        workers: threads that decode.
        samples: the number of clips to keep for pictures.
        progress: called with (done, total) images of a file.
    """

    decode: bool = True
    workers: int = 4
    samples: int = 0
    progress: Progress | None = None


def sample_positions(total: int, samples: int) -> set[int]:
    """At most `samples` positions of `total`, evenly spread."""
    count = min(total, samples)
    return {i * total // count for i in range(count)}
