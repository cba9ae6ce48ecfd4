"""`l2g score vps`: VPQ and STQ of files on disk, with the keys of the published programs' numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, make_folder


def score_vps(
    truth: Annotated[Path, typer.Option(help="The truth: a VIPSeg panoptic JSON.")],
    predictions: Annotated[Path, typer.Option(help="The predictions' pred.json.")],
    truth_maps: Annotated[
        Path, typer.Option(help="<video>/<frame>.png below a folder, or an .npz with gt/<video>.")
    ],
    prediction_maps: Annotated[
        Path, typer.Option(help="<video>/<frame>.png below a folder, or an .npz with pred/<video>.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a truth with oddities, instead of warning of them.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")] = None,
) -> None:
    """Video panoptic scores, VPQ and STQ, as the published programs give them."""
    from ..evaluation.panoptic_files import score_files

    scores, oddities = score_files(truth, predictions, truth_maps, prediction_maps, strict=strict)
    for line in oddities:
        typer.echo(f"l2g: warning: {line}", err=True)
    if json_path is not None:
        _write(scores, json_path)
    _show(scores)


def _write(scores: Mapping[str, Any], path: Path) -> None:
    make_folder(path.parent, "--json")
    if path.is_dir():
        raise UserError(f"{path}: --json names a folder; it needs the name of a file")
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _show(scores: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None, factor: float = 100) -> str:
        return "-" if value is None else f"{factor * value:.2f}"

    def row(name: str, cells: Mapping[str, float | None], factor: float = 100) -> None:
        table.add_row(name, *(percent(cells[group], factor) for group in ("all", "thing", "stuff")))

    table = Table("percent", "all", "things", "stuff")
    for column in table.columns[1:]:
        column.justify = "right"
    for length, window in scores["vpq_windows"].items():
        frames = "frame" if length == "1" else "frames"
        groups = {name: window[name] and window[name]["pq"] for name in ("all", "thing", "stuff")}
        row(f"VPQ, windows of {length} {frames}", groups)
    row("VPQ, mean of 1, 2, 4, 6 (papers)", scores["VPQ"], 1)
    row("VPQ, mean of 1, 2, 4, 6, 8 (script)", scores["VPQ_script_final_5_windows"], 1)
    for name in ("STQ", "AQ", "SQ"):
        table.add_row(name, percent(scores["stq"][name]), "", "")
    Console().print(table)
