"""The commands `l2g data make / check / convert / view`.  As in cli.py, each imports what it needs when it runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.find import find_config_file
from ..errors import UserError

if TYPE_CHECKING:
    from ..data.convert import Converted

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
    from ..data.generated.shapes import load_shapes
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


convert_app = typer.Typer(
    help="Datasets of other forms into those that are read here.", no_args_is_help=True, rich_markup_mode=None
)
data_app.add_typer(convert_app, name="convert")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")]
Link = Annotated[bool, typer.Option("--link", help="Link frames instead of copying them.")]


@convert_app.command()
def coco(
    annotations: Annotated[Path, typer.Argument(metavar="INSTANCES.json")],
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="E.g. coco2ytvis2021_train.json.")],
    classes: Annotated[str, typer.Option(help="ytvis2019, ytvis2021 (2022's too) or ovis.")] = "ytvis2021",
) -> None:
    """COCO's annotations of the classes that a video dataset has; images stay where they are."""
    from ..data.convert import convert_coco

    _report(convert_coco(annotations, out, classes))


@convert_app.command()
def vipseg(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="It holds imgs/ and panomasks/.")],
    out: Out,
    height: Annotated[int, typer.Option(min=16, help="Rows of the new frames.")] = 720,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 4,
) -> None:
    """VIPSeg as published to 720p frames, panoptic PNGs and their JSON."""
    from ..data.convert import convert_vipseg

    _report(convert_vipseg(source, out, height, workers))


@convert_app.command()
def mots(
    annotations: Annotated[Path, typer.Argument(metavar="MASKS", help="Folders of PNGs, or .txt files.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of frames for each video.")],
    out: Out,
    link: Link = False,
) -> None:
    """MOTS and KITTI MOTS, PNG or txt, to YouTube-VIS."""
    from ..data.convert import convert_mots

    _report(convert_mots(annotations, images, out, link))


@convert_app.command()
def labelme(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Frames, a labelme JSON beside each.")],
    out: Out,
    link: Link = False,
) -> None:
    """Folders drawn in labelme to YouTube-VIS; group_id tells who is who."""
    from ..data.convert import convert_labelme

    _report(convert_labelme(source, out, link))


@convert_app.command()
def davis(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="It holds JPEGImages/ and Annotations/.")],
    out: Out,
    link: Link = False,
) -> None:
    """DAVIS and YouTube-VOS folders to YouTube-VIS."""
    from ..data.convert import convert_davis

    _report(convert_davis(source, out, link))


def _report(done: Converted) -> None:
    frames = f", {done.frames} frames" if done.frames != done.videos else ""
    typer.echo(f"{done.videos} {'videos' if frames else 'images'}{frames}, {done.instances} instances")
    for what, count in done.skipped.items():
        typer.echo(f"  left out     {count} {what}")
    for file in done.files:
        typer.echo(f"  annotations  {file}")


@data_app.command()
def view(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|PATH", help="A config file, or a dataset on disk.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="A .png or .jpg for a contact sheet, a .mp4 for an overlay video.")
    ] = Path("output/view.png"),
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 6,
    iteration: Annotated[int, typer.Option(min=0, help="Look at what this iteration is fed.")] = 0,
    cell: Annotated[int, typer.Option(min=0, help="Longer edge of a picture; 0 leaves it as it is.")] = 480,
    images: Annotated[Path | None, typer.Option(help="A dataset's folder of frames.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Frames of a clip of a dataset.")] = 4,
    plain: Annotated[bool, typer.Option("--plain", help="A dataset's frames as they are.")] = False,
    seed: Annotated[int, typer.Option(help="Of a dataset's clips.")] = 0,
) -> None:
    """Draw what the model is fed after augmentation: a row a clip, with masks, ids and boxes."""
    from .view import config_loader, dataset_loader
    from .view import view as draw

    place = Path(target)
    if place.is_dir() or place.suffix == ".json":
        if overrides:
            raise UserError(f"{overrides[0]}: a dataset on disk has no keys to change; name a config.")
        loader, classes = dataset_loader(place, images, clips, length, plain, seed, iteration)
    else:
        loader, classes = config_loader(find_config_file(target), overrides or [], iteration)
    draw(loader, classes, clips, output, cell or None)
