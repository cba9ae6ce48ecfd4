"""The commands `l2g report` and `l2g compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ...errors import UserError

Source = Annotated[
    str | None, typer.Option("--source", help="The original video, if it is not where it was.")
]

Device = Annotated[str | None, typer.Option("--device", help="cuda, cuda:1 or cpu; default: first GPU.")]


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Output folders of predict, or of trainings.")
    ],
    source: Source = None,
    queries: Annotated[
        bool, typer.Option("--queries", help="Also show where the model looked; needs --weights.")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="The weights that made the run, for --queries.")] = None,
    device: Device = None,
) -> None:
    """Write report.html: a player with masks and the timeline of every object; for trainings, their curves."""
    from .report import find_folders
    from .report import report as write
    from .training import is_training, write_curves

    if queries != (weights is not None):
        raise UserError("--queries and --weights belong together")
    trainings = [folder for folder in folders if is_training(folder)]
    if trainings:
        typer.echo(f"  page {write_curves(trainings)}")
    outputs = [found for folder in folders if folder not in trainings for found in find_folders(folder)]
    if source is not None and len(outputs) != 1:
        raise UserError(
            f"--source names one video, but there are {len(outputs)} output folders of l2g predict"
        )
    model = None
    if weights is not None:
        from ..predict import L2G

        model = L2G.from_pretrained(weights, device)
    for folder in outputs:
        typer.echo(f"  page {write(folder, source, model)}")


def compare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...|VIDEO", help="Output folders of predict; or a video and --weights."
        ),
    ],
    truth: Annotated[Path | None, typer.Option(help="Annotations of the video in YouTube-VIS form.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="Run these weights on the video first; may be repeated.")
    ] = None,
    source: Source = None,
    device: Device = None,
    picture: Annotated[
        bool, typer.Option("--picture", help="Also write compare.webp, an animated picture.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Output folder.")] = Path("output/compare"),
) -> None:
    """Show runs on one video side by side: compare.html and compare.mp4, where they differ, where ids switch."""
    from .compare import compare as write

    folders = [Path(text) for text in inputs]
    if weights:
        if len(inputs) != 1:
            raise UserError("with --weights, compare takes one video")
        folders, source = _predict(inputs[0], weights, device, output), inputs[0]
    written = write(folders, truth, output, source, picture)
    names, rows = written.summary
    for run, *values in rows[1:]:
        facts = (f"{name.lower()} {value}" for name, value in zip(names[1:], values, strict=True))
        typer.echo(f"  {run}: {', '.join(facts)}")
    typer.echo(f"  page  {written.page}")
    typer.echo(f"  video {written.video}")
    if written.picture is not None:
        typer.echo(f"  picture {written.picture}")


def _predict(video: str, weights: list[str], device: str | None, output: Path) -> list[Path]:
    """Runs each of the weights on a video; returns the output folders, named after the weights."""
    from ..batch import predict_one_by_one
    from ..predict import L2G
    from ..predict_command import predict_all
    from ..video import open_source
    from .compare import distinct_names

    opened = open_source(video)
    models = [L2G.from_pretrained(path, device) for path in weights]  # weights are checked before any is run
    folders = []
    names = distinct_names([Path(text) for text in weights])
    for path, name, model in zip(weights, names, models, strict=True):
        place = output / name.replace("/", "-")
        typer.echo(f"{path}:")
        one = partial(model.predict, output_dir=place)
        predict_all(partial(predict_one_by_one, one, [opened]), [opened])
        folders.append(place / opened.name)
    return folders
