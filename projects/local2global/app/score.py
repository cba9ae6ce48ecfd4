"""The commands `l2g score vis / vps / vos`: scores of result files, and the submission file of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ..evaluation.ytvis import Scores

score_app = typer.Typer(
    help="Score result files as the published programs do.", no_args_is_help=True, rich_markup_mode=None
)
Json = Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse inconsistent input instead of warning.")]


@score_app.command(name="vis")
def score_vis(
    truth: Annotated[Path, typer.Option(help="Annotations in YouTube-VIS or OVIS format.")],
    results: Annotated[Path, typer.Option(help="Predicted tracks: results.json, or a zip with it.")],
    ovis: Annotated[
        bool, typer.Option("--ovis", help="Also score by occlusion level, as OVIS does.")
    ] = False,
    strict: Strict = False,
    extra: Annotated[
        bool, typer.Option("--extra", help="Also HOTA, IDF1, switches and AP by length (needs trackeval).")
    ] = False,
    json_path: Json = None,
) -> None:
    """AP and AR of video instance segmentation, as the official scorers of YouTube-VIS and OVIS compute them."""
    from ..evaluation.oddities import Oddities
    from ..evaluation.ytvis import report, score_files
    from .output import write_json

    oddities = Oddities(strict)
    scores = score_files(truth, results, ovis=ovis, oddities=oddities)
    _warn(oddities.lines())
    more = _extra_scores(scores, truth) if extra else {}
    if json_path is not None:
        write_json(json_path, {**report(scores), **more})
    _show("score", {name: "-" if x < 0 else f"{100 * x:.2f}" for name, x in scores.stats.items()})
    for title, numbers in more.items():
        _show(title, {n: f"{x:.4g}" if isinstance(x, float) else str(x) for n, x in numbers.items()})
    predicted, true = sum(map(len, scores.predictions.values())), sum(map(len, scores.truths.values()))
    typer.echo(
        f"{predicted} predicted and {true} true tracks, {len(scores.category_ids)} categories; in percent, "
        "- where the truth has no track"
    )


@score_app.command(name="vps")
def score_vps(
    truth: Annotated[Path, typer.Option(help="Truth: a VIPSeg panoptic JSON.")],
    predictions: Annotated[Path, typer.Option(help="Predictions: their pred.json.")],
    truth_maps: Annotated[
        Path, typer.Option(help="Folder of <video>/<frame>.png, or an .npz with gt/<video>.")
    ],
    prediction_maps: Annotated[
        Path, typer.Option(help="Folder of <video>/<frame>.png, or an .npz with pred/<video>.")
    ],
    strict: Strict = False,
    json_path: Json = None,
) -> None:
    """Video panoptic scores, VPQ and STQ, as the published programs compute them."""
    from ..evaluation.panoptic_files import score_files
    from .output import write_json

    scores, oddities = score_files(truth, predictions, truth_maps, prediction_maps, strict=strict)
    _warn(oddities)
    if json_path is not None:
        write_json(json_path, scores)
    _show_panoptic(scores)


@score_app.command(name="vos")
def score_vos(
    truth: Annotated[Path, typer.Option(help="Annotations in YouTube-VIS format.")],
    results: Annotated[Path, typer.Option(help="Predicted tracks: results.json, or a zip with it.")],
    strict: Strict = False,
    json_path: Json = None,
) -> None:
    """J and F of video object segmentation, as DAVIS defines them; each object has the best-fitting track."""
    from ..evaluation.oddities import Oddities
    from ..evaluation.vos import score_files
    from .output import write_json

    oddities = Oddities(strict)
    scores = score_files(truth, results, oddities)
    _warn(oddities.lines())
    if json_path is not None:
        write_json(json_path, scores)
    _show("percent", {name: "-" if math.isnan(x) else f"{100 * x:.2f}" for name, x in scores.items()})


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(f"l2g: warning: {line}", err=True)


def _extra_scores(scores: Scores, truth: Path) -> dict[str, Any]:
    from ..evaluation.files import read_json
    from ..evaluation.identity_scores import by_length, identity_scores

    lengths = by_length(scores, read_json(truth))
    return {"identity": identity_scores(scores), "by_length": lengths}


def _show(title: str, cells: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title, "value")
    table.columns[1].justify = "right"
    for name, value in cells.items():
        table.add_row(name, value)
    Console().print(table)


def _show_panoptic(scores: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("percent", "all", "things", "stuff")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, groups: Mapping[str, float | None], factor: float = 100) -> None:
        values = [groups[group] for group in ("all", "thing", "stuff") if group in groups]
        table.add_row(name, *("-" if value is None else f"{factor * value:.2f}" for value in values))

    for length, window in scores["vpq_windows"].items():
        groups = {name: window[name] and window[name]["pq"] for name in ("all", "thing", "stuff")}
        add(f"VPQ, windows of {length} frame{'' if length == '1' else 's'}", groups)
    add("VPQ, mean of 1, 2, 4, 6 (papers)", scores["VPQ"], 1)
    add("VPQ, mean of 1, 2, 4, 6, 8 (script)", scores["VPQ_script_final_5_windows"], 1)
    for name in ("STQ", "AQ", "SQ"):
        add(name, {"all": scores["stq"][name]})
    Console().print(table)


def explain_parts(scores: Mapping[str, Any]) -> None:
    """Says which videos the scores of an evaluation by parts are of."""
    parts = [
        name.removeprefix("segm_") for name in scores if name.startswith("segm_") and name != "segm_mean"
    ]
    if "segm_mean" in scores:
        listed = ", ".join(f"segm_{part}: its {part} videos" for part in parts)
        typer.echo(f"segm: all videos; {listed}; segm_mean: the mean of {' and '.join(parts)}.")
        typer.echo("Papers on YouTube-VIS 2022 report the long videos or the mean: compare the same number.")


def bundle_results(cfg: DictConfig, path: Path | None) -> None:
    """After an evaluation, writes a zip file of the tracks in the form that challenges take.

    It is written if a path is given, or if the annotations hold no truth to score against.

    Args:
        cfg: the config of the evaluation.
        path: the zip file; the default is `results.zip` beside `results.json`.

    Raises:
        UserError: if the evaluator writes no results, or a challenge would refuse them.
    """
    from ..engine.evaluation import results_config
    from ..engine.settings import build
    from ..evaluation.submission import write_bundle

    evaluator = build(results_config(cfg), "dataloader.evaluator")
    truth = getattr(evaluator, "truth", None)
    if not isinstance(truth, Mapping) or "videos" not in truth:  # e.g. panoptic truth
        if path is not None:
            raise UserError("--submit: dataloader.evaluator scores no tracks, and a zip holds tracks only")
        return
    unscored = not truth.get("annotations") and not getattr(evaluator, "parts", None)
    if path is None and not unscored:
        return
    folder = getattr(evaluator, "output_dir", None)
    if folder is None:
        raise UserError("--submit: dataloader.evaluator writes no results.json; set its output_dir")
    path = path or folder / "results.zip"
    tracks, videos, empty = write_bundle(truth, folder / "results.json", path)
    if unscored:
        typer.echo("No local truth to score against: the annotations hold videos only.")
    typer.echo(f"{path}: {tracks} tracks of {videos} videos, in the form of the challenge.")
    if empty:
        _warn([f"{empty} listed videos have no track"])
