"""The commands `l2g data make / check / convert / view`.  As in cli.py, each imports what it needs when it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="Datasets: make, check, convert and look at them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Layout(str, Enum):
    """How a dataset lies on disk."""

    ytvis = "ytvis"
    vipseg = "vipseg"


class ImageFormat(str, Enum):
    """What frames are stored as."""

    jpg = "jpg"
    png = "png"


@data_app.command()
def make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    preset: Annotated[str, typer.Option(help="What the videos are drawn from, e.g. demo or hard.")] = "demo",
    videos: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    length: Annotated[
        int | None, typer.Option(min=1, help="Frames of each; by default the preset's.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="HEIGHT WIDTH", help="By default the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Other seeds give other videos.")] = 0,
    layout: Annotated[Layout, typer.Option("--format", help="The layout on disk.")] = Layout.ytvis,
    images: Annotated[
        ImageFormat, typer.Option(help="png keeps every pixel as it was drawn.")
    ] = ImageFormat.jpg,
) -> None:
    """Write generated videos with their masks as a YouTube-VIS or a VIPSeg dataset."""
    from ..data.shapes import load_shapes
    from ..data.writers import write_vipseg, write_youtube_vis

    dataset = load_shapes(preset, videos, seed, length, size)
    write = write_vipseg if layout is Layout.vipseg else write_youtube_vis
    file = write(dataset.videos, dataset.classes, out, images.value)
    typer.echo(f"{videos} videos  {out}\n  annotations  {file}\n  check them   l2g data check {out}")


@data_app.command()
def check(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A dataset's folder, or an annotation file; also videos.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the frames; by default it is sought.")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="The folder of VIPSeg's panoptic PNGs, likewise.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for pictures of some clips.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="How many clips of each file to draw.")] = 4,
    limit: Annotated[int, typer.Option(min=0, help="Lines of one kind of problem; 0 for all.")] = 50,
    headers: Annotated[
        bool, typer.Option("--headers", help="Read only the headers of frames: quick, blind to cut files.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read frames.")] = 4,
    report: Annotated[Path | None, typer.Option("--json", help="Write all findings to this file.")] = None,
) -> None:
    """Name every problem of a dataset, with file, id and remedy, and sum up what it holds; exit 1 on errors."""
    from .check import Wanted, run

    if not run(path, Wanted(images, maps, pictures, clips, limit, headers, workers, report)):
        raise typer.Exit(1)
