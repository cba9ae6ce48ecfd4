"""The paper's tables: one line per row of the paper, followed by one line per run of its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.saved import read_yaml
from ..engine.metrics import read_entries
from ..engine.run_folder import read_versions
from ..errors import UserError
from ..files import write_text
from ..lazy import LazyConfig, load_config
from .output import csv_table, markdown_table

#: The keys of `paper` that identify a row; all other keys are scores.
NAMES = ("table", "row", "dataset")
#: The paper's score columns in order, and the key of each score in `metrics.jsonl`.
SCORES = {
    **{name: f"segm/{name}" for name in ("AP", "AP50", "AP75", "AR1", "AR10")},
    **{name: f"panoptic/{name}" for name in ("VPQ", "VPQ_Th", "VPQ_St", "STQ")},
}
#: What a table shows about a run besides its scores.
FACTS = ("iterations", "seed", "commit", "hardware", "command")


@dataclass(frozen=True)
class Row:
    """A row of the paper.

    Attributes:
        config: path of the config that reproduces the row, relative to configs/.
        names: (table, row, dataset).
        scores: the paper's scores in percent.
        command: the training command in the config's docstring.
    """

    config: str
    names: tuple[Any, ...]
    scores: Mapping[str, float]
    command: str


@dataclass(frozen=True)
class Measured:
    """The scores of one run.

    Attributes:
        folder: output folder of the run.
        names: the row in the `paper` dict of the run's config.
        scores: scores of the last evaluation in percent; undefined scores (-1) are left out.
        facts: iteration, commit, hardware, command etc. as saved by the run.
    """

    folder: Path
    names: tuple[Any, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_rows(configs: Path) -> list[Row]:
    """Reads `paper` and `paper_also` of all configs below a folder, sorted in the paper's order.

    `paper` is the row that the config is named after.  `paper_also` lists further rows of the same model.

    Raises:
        UserError: if two configs claim the same row.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for path in sorted(configs.rglob("*.py")):
        config, text = str(path.relative_to(configs)), path.read_text(encoding="utf-8")
        if config.startswith("common/") or "paper = " not in text:
            continue
        entries = [load_config(path).paper]
        if "paper_also = " in text:
            entries += LazyConfig.load(str(path), "paper_also")
        lines = map(str.strip, text.splitlines())
        command = next((line for line in lines if line.startswith("l2g train")), "")
        for entry in map(dict, entries):
            names = tuple(entry.pop(name, None) for name in NAMES)
            if names in rows:
                raise UserError(
                    f"{config}: table {names[0]}, {names[1]}, is a row of {rows[names].config} too."
                )
            rows[names] = Row(config, names, entry, command)
    return sorted(rows.values(), key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    """Sort key: table, dataset, then numeric row name or ascending first score, as in the paper."""
    table, name, dataset = row.names
    size = int(name) if str(name).isdecimal() else 0
    return table, str(dataset), size, next(iter(row.scores.values()), 0.0), str(name)


def read_runs(folders: Iterable[Path]) -> list[Measured]:
    """Finds all runs below the folders whose config has a `paper` dict.

    Raises:
        UserError: if a folder does not exist, or a config.yaml cannot be read.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of runs.")
        for config in sorted(folder.rglob("config.yaml")):
            content = read_yaml(config)
            paper = content.get("paper") if isinstance(content, dict) else None
            if isinstance(paper, dict):
                names = (paper.get(name) for name in NAMES)
                runs.append(
                    _read_run(config.parent, tuple(n if isinstance(n, (int, str)) else None for n in names))
                )
    return runs


def _read_run(folder: Path, names: tuple[Any, ...]) -> Measured:
    scores: dict[str, float] = {}
    iterations = None
    for entry in read_entries(folder / "metrics.jsonl"):
        latest = {name: entry.get(key) for name, key in SCORES.items()}
        defined = {
            name: float(value)
            for name, value in latest.items()
            if isinstance(value, (int, float)) and value >= 0
        }
        if defined:
            scores, iterations = defined, entry["iteration"] + 1
    return Measured(folder, names, scores, {**read_versions(folder), "iterations": iterations})


def build_table(rows: Sequence[Row], runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """Lists each row of the paper, followed by the runs of its config.

    Returns:
        One dict per line; all have the same keys, and unknown values are None.

    Raises:
        UserError: if a run names a row that no config has.
    """
    configs = {row.names: row.config for row in rows}
    for run in runs:
        if run.names not in configs:
            raise UserError(f"{run.folder}: table {run.names[0]}, {run.names[1]}: no config has this row.")
    lines = []
    for row in rows:
        lines.append(_line(row.names, "paper", row.scores, {"command": row.command}))
        for run in runs:
            if configs[run.names] == row.config:
                lines.append(_line(row.names, str(run.folder), run.scores, run.facts))
    return lines


def _line(
    names: tuple[Any, ...], source: str, scores: Mapping[str, float], facts: Mapping[str, Any]
) -> dict[str, Any]:
    line = {**dict(zip(NAMES, names, strict=True)), "source": source}
    return line | {name: scores.get(name) for name in SCORES} | {name: facts.get(name) for name in FACTS}


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Formats the lines as CSV."""
    return csv_table([*NAMES, "source", *SCORES, *FACTS], [list(line.values()) for line in lines])


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Formats one Markdown table per table of the paper; scores of runs show their difference from the paper."""
    parts = []
    for table in dict.fromkeys(line["table"] for line in lines):
        own = [line for line in lines if line["table"] == table]
        scores = [name for name in SCORES if any(line[name] is not None for line in own)]
        head = ["row", "dataset", "source", *scores, "iterations", "commit", "hardware", "command"]
        cells, paper = [], own[0]
        for line in own:
            paper = line if line["source"] == "paper" else paper
            cells.append([_cell(line, name, paper) for name in head])
        parts.append(f"## Table {table}\n\n{markdown_table(head, cells, scores)}\n")
    return "\n".join(parts)


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
    """Writes the lines to a .md or .csv file atomically.

    Raises:
        UserError: if the path has another suffix.
    """
    if path.suffix not in (".md", ".csv"):
        raise UserError(f"{path}: tables are written as .md or .csv.")
    write_text(path, as_csv(lines) if path.suffix == ".csv" else as_markdown(lines))
