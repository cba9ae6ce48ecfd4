"""The paper's tables beside what runs measured: one row for each config with a `paper`, one more for each run of it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..lazy import load_config

#: What names a row of the paper; everything else in `paper` is a number of it.
NAMES = ("table", "row", "dataset")
#: The paper's numbers in the order of its columns, and where a run's metrics have them.
SCORES = {
    "AP": ("segm/AP",),
    "AP50": ("segm/AP50",),
    "AP75": ("segm/AP75",),
    "AR1": ("segm/AR1",),
    "AR10": ("segm/AR10",),
    "VPQ": ("panoptic/VPQ",),
    "VPQ_Th": ("panoptic/VPQ_Th",),
    "VPQ_St": ("panoptic/VPQ_St",),
    "STQ": ("panoptic/STQ",),
}


@dataclass(frozen=True)
class Row:
    """A row of the paper.

    Attributes:
        config: its config, relative to configs/.
        names: table, row and dataset.
        scores: the paper's numbers.
        command: the first command of the config's docstring.
    """

    config: str
    names: tuple[Any, ...]
    scores: Mapping[str, float]
    command: str


@dataclass(frozen=True)
class Measured:
    """What a run says of itself.

    Attributes:
        folder: the run's folder.
        names: the row that its config names.
        scores: of its last evaluation; those that are not defined (-1) are left out.
        facts: iteration, commit, hardware, command and more, as far as the run saved them.
    """

    folder: Path
    names: tuple[Any, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_rows(configs: Path) -> list[Row]:
    """Every row of the paper that a config below a folder names, in the paper's order.

    Raises:
        UserError: if two configs name one row.
    """
    rows: list[Row] = []
    for path in sorted(configs.rglob("*.py")):
        if path.relative_to(configs).parts[0] == "common" or "paper = " not in path.read_text(
            encoding="utf-8"
        ):
            continue
        paper = dict(load_config(path).paper)
        lines = path.read_text(encoding="utf-8").splitlines()
        command = next((line.strip() for line in lines if line.strip().startswith("l2g train")), "")
        names = tuple(paper.pop(name, None) for name in NAMES)
        twin = next((row.config for row in rows if row.names == names), None)
        if twin is not None:
            raise UserError(
                f"{path.relative_to(configs)}: table {names[0]}, {names[1]}, is {twin}'s row too."
            )
        rows.append(Row(str(path.relative_to(configs)), names, paper, command))
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    """By table and data set; then as the paper builds its rows up, from fewer to more and from worse to better."""
    table, name, dataset = row.names
    size = int(name) if str(name).isdigit() else 0
    return table, str(dataset), size, next(iter(row.scores.values()), 0.0), str(name)


def read_runs(folders: Iterable[Path]) -> list[Measured]:
    """Every run of a row of the paper in these folders or below.

    Raises:
        UserError: for a folder that is not there, or a run's file that cannot be read.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of runs.")
        for config in sorted(folder.rglob("config.yaml")):
            try:
                content = yaml.safe_load(config.read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"{config}: cannot be read ({' '.join(str(error).split())}).") from error
            paper = content.get("paper") if isinstance(content, dict) else None
            if paper:
                found.append(_read_run(config.parent, tuple(paper.get(name) for name in NAMES)))
    return found


def _read_run(folder: Path, names: tuple[Any, ...]) -> Measured:
    scores: dict[str, float] = {}
    iteration = None
    for entry in _entries(folder / "metrics.jsonl"):
        latest = {name: _score(entry, keys) for name, keys in SCORES.items()}
        if any(value is not None for value in latest.values()):
            scores = {name: value for name, value in latest.items() if value is not None}
            iteration = entry["iteration"] + 1
    versions = folder / "versions.json"
    facts = json.loads(versions.read_text()) if versions.is_file() else {}
    return Measured(folder, names, scores, {"iterations": iteration, **facts})


def _entries(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of metrics.jsonl; a run that was killed may have left half a line."""
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _score(entry: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    values = [entry[key] for key in keys if entry.get(key) is not None]
    return float(values[0]) if values and values[0] >= 0 else None


def build_table(rows: Sequence[Row], runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """One line for each row of the paper, and below it one for each run of it.

    Raises:
        UserError: if a run names a row that no config has.
    """
    known = {row.names for row in rows}
    for run in runs:
        if run.names not in known:
            raise UserError(f"{run.folder}: table {run.names[0]}, {run.names[1]}: no config has this row.")
    lines: list[dict[str, Any]] = []
    for row in rows:
        head = dict(zip(NAMES, row.names, strict=True))
        scores = {name: row.scores.get(name) for name in SCORES}
        lines.append({**head, "source": "paper", **scores, **_facts({}), "command": row.command})
        for run in (run for run in runs if run.names == row.names):
            scores = {name: run.scores.get(name) for name in SCORES}
            lines.append({**head, "source": str(run.folder), **scores, **_facts(run.facts)})
    return lines


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("iterations", "seed", "commit", "hardware", "command")
    return {name: facts.get(name) for name in names}


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as csv; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [*NAMES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """One table for each of the paper's; the paper's numbers, and below them a run's with the difference."""
    parts = []
    for number in dict.fromkeys(line["table"] for line in lines):
        own = [line for line in lines if line["table"] == number]
        scores = [name for name in SCORES if any(line[name] is not None for line in own)]
        heads = ["row", "dataset", "source", *scores, "iterations", "commit", "hardware", "command"]
        body, paper = [], own[0]
        for line in own:
            paper = line if line["source"] == "paper" else paper
            cells = [_cell(line, name, paper) for name in heads]
            body.append("| " + " | ".join(cells) + " |")
        rule = "|" + "|".join("---:" if name in scores else "---" for name in heads) + "|"
        parts.append("\n".join([f"## Table {number}", "", "| " + " | ".join(heads) + " |", rule, *body]))
    return "\n\n".join(parts) + "\n"


def _cell(line: Mapping[str, Any], name: str, paper: Mapping[str, Any]) -> str:
    value = line[name]
    if value is None:
        return "-"
    if name not in SCORES:
        text = str(value)[:10] if name == "commit" else str(value)
        return f"`{text}`" if name == "command" else text.replace("|", "/")
    if line is paper or paper[name] is None:
        return f"{value:.1f}"
    return f"{value:.1f} ({value - paper[name]:+.1f})"


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a .md or .csv file, whole or not at all.

    Raises:
        UserError: for another ending.
    """
    if path.suffix not in (".md", ".csv"):
        raise UserError(f"{path}: tables are written as .md or .csv.")
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(as_csv(lines) if path.suffix == ".csv" else as_markdown(lines), encoding="utf-8")
    os.replace(partial, path)
