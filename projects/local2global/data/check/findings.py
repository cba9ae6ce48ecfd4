"""What a check finds: problems with file, place and remedy, and a summary of what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..datasets import AnnotatedVideo

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        severity: "error" for what a reader or a scorer refuses or gets wrong, else "warning".
        kind: a short name that findings of the same sort share, e.g. "missing-frame".
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
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{place}: {self.problem}. {self.fix}."


@dataclass
class Summary:
    """What one annotation file describes, counted while it is checked.

    Attributes:
        file: the annotation file.
        layout: its format, in words.
        images: the folder of its frames.
        videos: videos, or images of a COCO file.
        frames: frames of all videos.
        instances: per class name the instances (tracks, or annotations of a COCO file), crowds apart.
        crowds: ignore regions.
        sizes: how many videos have frames of (height, width).
        lengths: frames of each video.
        tracks: frames in which each instance is seen.
        absences: of each instance that is away and comes back, the frames it is away.
        annotated: whether the file holds annotations at all.
    """

    file: Path
    layout: str
    images: Path | None
    videos: int = 0
    frames: int = 0
    instances: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    tracks: list[int] = field(default_factory=list)
    absences: list[int] = field(default_factory=list)
    annotated: bool = True

    def add_video(self, size: tuple[int, int], length: int) -> None:
        """Counts a video."""
        self.videos += 1
        self.frames += length
        self.sizes[size] += 1
        self.lengths.append(length)

    def add_track(self, class_name: str, present: Sequence[bool]) -> None:
        """Counts an instance by the frames that show it."""
        self.instances[class_name] += 1
        seen = [t for t, there in enumerate(present) if there]
        self.tracks.append(len(seen))
        away = seen[-1] - seen[0] + 1 - len(seen) if seen else 0
        if away:
            self.absences.append(away)


@dataclass(frozen=True)
class Sample:
    """A clip to look at: its frames and the masks that could be read.

    Attributes:
        video: the frames and masks.
        classes: {id, name}; a track's label is a position in it.
    """

    video: AnnotatedVideo
    classes: list[dict[str, Any]]


class Report:
    """All findings, in the order of the check, with a summary of each annotation file and some clips to look at."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.summaries: list[Summary] = []
        self.samples: list[Sample] = []

    @property
    def errors(self) -> list[Finding]:
        """The findings that make a dataset unfit."""
        return [f for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The findings that deserve a look."""
        return [f for f in self.findings if f.severity == "warning"]


@dataclass(frozen=True)
class Notes:
    """Takes down the problems of one annotation file.

    Attributes:
        report: where they go.
        file: the name by which the file is called.
    """

    report: Report
    file: str

    def error(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Notes what makes the dataset unfit."""
        self.report.findings.append(Finding("error", kind, file or self.file, where, problem, fix))

    def warn(self, kind: str, where: str, problem: str, fix: str, file: str | None = None) -> None:
        """Notes what deserves a look."""
        self.report.findings.append(Finding("warning", kind, file or self.file, where, problem, fix))


@dataclass(frozen=True)
class Options:
    """How thoroughly to look.

    Attributes:
        decode: whether every image is decoded, the only way to see that a file is cut short; else its header is read.
        workers: threads that decode.
        samples: clips to keep for pictures.
        progress: told (done, total) of the images of a file as they are read.
    """

    decode: bool = True
    workers: int = 4
    samples: int = 0
    progress: Progress | None = None


def chosen(total: int, samples: int) -> set[int]:
    """At most `samples` positions of `total`, evenly spread."""
    count = min(total, samples)
    return {i * total // count for i in range(count)}


def title(entry: Mapping[str, Any]) -> str:
    """How a video is called in a finding: its id and, where it has one, its name."""
    name = entry.get("name")
    return f'video {entry.get("id")}, "{name}"' if name else f"video {entry.get('id')}"
