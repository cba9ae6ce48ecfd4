"""`l2g score vis`: the official numbers of a results file, with a word on whatever is odd in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ..evaluation.ytvis import Scores


def score_vis(
    truth: Annotated[Path, typer.Option(help="Annotations in YouTube-VIS or OVIS form.")],
    results: Annotated[Path, typer.Option(help="Predicted tracks: results.json, or a zip with it.")],
    ovis: Annotated[bool, typer.Option("--ovis", help="Also by occlusion level, as OVIS does.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what is odd instead of warning about it.")
    ] = False,
    extra: Annotated[
        bool, typer.Option("--extra", help="Also HOTA, IDF1, switches and AP by length (needs trackeval).")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write every number here.")] = None,
) -> None:
    """AP and AR of video instance segmentation, as the official scorers of YouTube-VIS and OVIS give them."""
    from ..evaluation.oddities import Oddities
    from ..evaluation.ytvis import report, score_files

    oddities = Oddities(strict)
    found = score_files(truth, results, ovis=ovis, oddities=oddities)
    for line in oddities.lines():
        typer.echo(f"l2g: warning: {line}", err=True)
    more = _extra(found, truth) if extra else {}
    if json_path is not None:
        _write_json(json_path, {**report(found), **more})
    _show(found, more)


def _extra(found: Scores, truth: Path) -> dict[str, Any]:
    from ..evaluation.identity_scores import by_length, identity_scores
    from ..evaluation.masks import read_document

    return {
        "identity": identity_scores(found),
        "by_length": by_length(found, read_document(truth).content),
    }


def _write_json(path: Path, numbers: dict[str, Any]) -> None:
    import json
    import os

    from ..errors import UserError, make_folder

    make_folder(path.parent, "--json")
    if path.is_dir():
        raise UserError(f"{path}: --json names a folder; it needs the name of a file")
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _show(found: Scores, more: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("score", "value")
    table.columns[1].justify = "right"
    for name, value in found.stats.items():
        table.add_row(name, "-" if value < 0 else f"{100 * value:.2f}")
    console.print(table)
    for title, numbers in more.items():
        table = Table(title, "value")
        table.columns[1].justify = "right"
        for name, value in numbers.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        console.print(table)
    tracks = sum(map(len, found.predictions.values())), sum(map(len, found.truths.values()))
    console.print(
        f"{tracks[0]} predicted and {tracks[1]} true tracks, {len(found.category_ids)} categories; in percent, "
        "- where no truth belongs to the group",
        highlight=False,
    )


def bundle_results(cfg: DictConfig, target: Path | None) -> None:
    """After an evaluation: the zip for the server, if one is asked for or all there is to have without truth.

    Raises:
        UserError: the evaluator writes no results, or the server would refuse them.
    """
    from ..errors import UserError
    from ..lazy import instantiate

    evaluator = instantiate(cfg.dataloader.evaluator)
    truth = getattr(evaluator, "truth", None)
    if (
        not isinstance(truth, Mapping) or "videos" not in truth
    ):  # of a panoptic truth, for one, there are no tracks
        if target is not None:
            raise UserError(
                "--submit: dataloader.evaluator scores no tracks, which are what the servers take"
            )
        return
    blind = not truth.get("annotations")
    if target is None and not blind:
        return
    folder = getattr(evaluator, "output_dir", None)
    if folder is None:
        raise UserError("--submit: dataloader.evaluator writes no results.json; give it an output_dir")
    from ..evaluation.submission import write_bundle

    target = target or folder / "results.zip"
    bundle = write_bundle(truth, folder / "results.json", target)
    if blind:
        typer.echo("No truth to score against: the annotations hold videos only.")
    typer.echo(f"{target}: {bundle.tracks} tracks of {bundle.videos} videos, ready for the server.")
    if bundle.empty:
        typer.echo(f"l2g: warning: {bundle.empty} listed videos have no track", err=True)
