"""The commands `l2g data make / check / convert / view`.  Heavy modules are imported when a command runs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config.find import find_config_file
from ..errors import UserError

if TYPE_CHECKING:
    from ..data.convert.common import Converted

data_app = typer.Typer(
    help="Make, check, convert and view datasets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Layout(str, Enum):
    """Dataset layout on disk."""

    ytvis = "ytvis"
    vipseg = "vipseg"


class ImageFormat(str, Enum):
    """File format of frames."""

    jpg = "jpg"
    png = "png"


@data_app.command()
def make(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    preset: Annotated[str, typer.Option(help="Preset of the generated videos, e.g. demo or hard.")] = "demo",
    videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 8,
    length: Annotated[int | None, typer.Option(min=1, help="Frames per video.")] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Size of the frames."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the videos.")] = 0,
    layout: Annotated[Layout, typer.Option("--format", help="Dataset layout on disk.")] = Layout.ytvis,
    images: Annotated[ImageFormat, typer.Option(help="Format of the frames.")] = ImageFormat.jpg,
) -> None:
    """Write generated videos and their masks as a YouTube-VIS or VIPSeg dataset."""
    from ..data.generated.shapes import load_shapes
    from ..data.writers import write_vipseg, write_youtube_vis

    dataset = load_shapes(preset, videos, seed, length, size)
    write = write_vipseg if layout is Layout.vipseg else write_youtube_vis
    file = write(dataset.videos, dataset.classes, out, images.value)
    typer.echo(f"{videos} videos  {out}\n  annotations  {file}\n  check them   l2g data check {out}")


@data_app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Dataset folder, annotation file, or videos.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the frames; default: searched.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder of panoptic PNGs; default: searched.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Output folder for pictures of some clips.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Number of clips to draw per annotation file.")] = 4,
    limit: Annotated[int, typer.Option(min=0, help="Lines per kind of problem; 0 for all.")] = 50,
    headers: Annotated[
        bool, typer.Option("--headers", help="Read only image headers: fast, misses truncated files.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read frames.")] = 4,
    report: Annotated[Path | None, typer.Option("--json", help="Write all findings to this file.")] = None,
) -> None:
    """List all problems of a dataset with file, id and fix, and summarise its content; exit 1 on errors."""
    from .check import run

    clean = run(
        path,
        images=images,
        maps=maps,
        pictures=pictures,
        clips=clips,
        limit=limit,
        headers=headers,
        workers=workers,
        json=report,
    )
    if not clean:
        raise typer.Exit(1)


@data_app.command()
def statistics(
    preset: Annotated[str, typer.Argument(help="Preset of the generated videos, e.g. ovis_like.")],
    videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 50,
    seed: Annotated[int, typer.Option(help="Random seed of the videos.")] = 0,
) -> None:
    """Print how many objects the videos of a preset have and how much they are occluded, beside published datasets."""
    from ..data import statistics as module
    from ..data.generated.shapes import load_shapes
    from .output import markdown_table

    found = module.statistics(load_shapes(preset, videos, seed).videos)
    rows = [
        [name, f"{value:.2f}", *(f"{p[name]:.2f}" if name in p else "" for p in module.PUBLISHED.values())]
        for name, value in found.items()
    ]
    typer.echo(markdown_table(["", preset, *module.PUBLISHED], rows))


convert_app = typer.Typer(
    help="Convert datasets of other formats.", no_args_is_help=True, rich_markup_mode=None
)
data_app.add_typer(convert_app, name="convert")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")]
Link = Annotated[bool, typer.Option("--link", help="Link frames instead of copying them.")]


@convert_app.command()
def coco(
    annotations: Annotated[Path, typer.Argument(metavar="INSTANCES.json")],
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="E.g. coco2ytvis2021_train.json.")],
    classes: Annotated[str, typer.Option(help="ytvis2019, ytvis2021 (2022 too) or ovis.")] = "ytvis2021",
) -> None:
    """Select COCO annotations of the classes of a video dataset; images are not copied."""
    from ..data.convert.coco import convert_coco

    _report(convert_coco(annotations, out, classes))


@convert_app.command()
def cocovid(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A CocoVID file, or its folder.")],
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="The folder of the frames; by default it is searched.")
    ] = None,
    link: Link = False,
) -> None:
    """CocoVID (mmtracking, BDD100K) to YouTube-VIS."""
    from ..data.convert.cocovid import convert_cocovid

    _report(convert_cocovid(source, out, images, link))


@convert_app.command()
def vipseg(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Contains imgs/ and panomasks/.")],
    out: Out,
    height: Annotated[int, typer.Option(min=16, help="Height of the resized frames.")] = 720,
    workers: Annotated[int, typer.Option(min=1, help="Threads.")] = 4,
) -> None:
    """Convert VIPSeg as published to 720p frames, panoptic PNGs and their JSON."""
    from ..data.convert.vipseg import convert_vipseg

    _report(convert_vipseg(source, out, height, workers))


@convert_app.command()
def mots(
    annotations: Annotated[Path, typer.Argument(metavar="MASKS", help="Folders of PNGs, or .txt files.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="One folder of frames per video.")],
    out: Out,
    link: Link = False,
) -> None:
    """Convert MOTS and KITTI MOTS, PNG or txt, to YouTube-VIS."""
    from ..data.convert.mots import convert_mots

    _report(convert_mots(annotations, images, out, link))


@convert_app.command()
def labelme(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folders of frames with JSON files.")],
    out: Out,
    link: Link = False,
) -> None:
    """Convert labelme folders to YouTube-VIS; shapes with one group_id are one object."""
    from ..data.convert.labelme import convert_labelme

    _report(convert_labelme(source, out, link))


@convert_app.command()
def davis(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Has JPEGImages/ and Annotations/.")],
    out: Out,
    link: Link = False,
) -> None:
    """Convert DAVIS and YouTube-VOS folders to YouTube-VIS."""
    from ..data.convert.davis import convert_davis

    _report(convert_davis(source, out, link))


def _report(converted: Converted) -> None:
    frames = f", {converted.frames} frames" if converted.frames != converted.videos else ""
    word = "videos" if frames else "images"
    typer.echo(f"{converted.videos} {word}{frames}, {converted.instances} instances")
    for reason, count in converted.skipped.items():
        typer.echo(f"  left out     {count} {reason}")
    for file in converted.files:
        typer.echo(f"  annotations  {file}")


@data_app.command()
def view(
    target: Annotated[str, typer.Argument(metavar="CONFIG|PATH", help="A config, or a dataset on disk.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the config.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="A .png or .jpg for a contact sheet, a .mp4 for an overlay video.")
    ] = Path("output/view.png"),
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 6,
    iteration: Annotated[int, typer.Option(min=0, help="First training iteration to draw.")] = 0,
    cell: Annotated[int, typer.Option(min=0, help="Maximal longer edge of a frame; 0: no limit.")] = 480,
    images: Annotated[Path | None, typer.Option(help="Folder of a dataset's frames.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Frames per clip of a dataset.")] = 4,
    plain: Annotated[bool, typer.Option("--plain", help="Draw a dataset without augmentation.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the clips of a dataset.")] = 0,
) -> None:
    """Draw training clips after augmentation: one row per clip, with masks, ids and boxes."""
    from .view import config_loader, dataset_loader
    from .view import view as draw

    path = Path(target)
    if path.is_dir() or path.suffix == ".json":
        if overrides:
            raise UserError(f"{overrides[0]}: a dataset on disk has no config keys; name a config file.")
        loader, classes = dataset_loader(path, images, clips, length, plain, seed, iteration)
    else:
        loader, classes = config_loader(find_config_file(target), overrides or [], iteration)
    draw(loader, classes, clips, output, cell or None)
