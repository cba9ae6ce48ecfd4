"""The command `l2g`.  Here only the parser is imported; each command imports what it needs."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .. import __version__
from ..config.find import find_config_file
from ..errors import UserError
from .data import data_app
from .score_vis import bundle_results, score_vis
from .score_vps import score_vps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..data.datasets import VideoRecord
    from .batch import Predict
    from .predict import L2G, Prediction, Progress
    from .video import Source

DEMO_CONFIG = "demo/l2g_tiny.py"

# click's error of usage: typer brings a copy of click or imports it, depending on its version.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    name="l2g",
    help="Local2Global: online video instance segmentation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes as long to load as everything else together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")

score = typer.Typer(
    help="Score files as the published programs do.", no_args_is_help=True, rich_markup_mode=None
)
score.command(name="vis")(score_vis)
score.command(name="vps")(score_vps)
app.add_typer(score, name="score")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")
]
Threshold = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Report objects from this score on; by default the model's own."),
]


def main() -> None:
    """Runs the command line: 0, 1 after a user's error, 2 after a bug or a misspelt option."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        sys.exit(app(args=arguments, prog_name="l2g", standalone_mode=False))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "l2g"
        line = f"l2g: {error.format_message()} (see {command} -h)"
        # Where nothing was asked, the message is the whole help.
        typer.echo(error.format_message() if "\n" in line else line, err=True)
        sys.exit(2)
    except UserError as error:
        if debug:
            raise
        typer.echo(f"l2g: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"l2g: {place}{error.strerror or error}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        message = (str(error).strip().splitlines() or [""])[0]
        hint = "(run again with --debug for the traceback)"
        typer.echo(f"l2g: unexpected {type(error).__name__}: {message} {hint}", err=True)
        sys.exit(2)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"l2g {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works before or after a command.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Local2Global: online video instance segmentation."""


@app.command()
def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("output/demo"),
) -> None:
    """Train a tiny model on generated videos, score it on held-out ones and draw one of them."""
    from rich.console import Console

    from ..engine.loop import train as run
    from ..lazy import apply_overrides, instantiate, load_config, variants_of
    from .predict import L2G, default_device

    path = find_config_file(DEMO_CONFIG)
    cfg = load_config(path)
    cfg.train.output_dir, cfg.train.device = str(output), default_device()
    cfg = apply_overrides(cfg, overrides or [], variants_of(path))
    folder = Path(cfg.train.output_dir)
    typer.echo(
        f"Training a tiny model on generated videos, then scoring it on others; all of it goes to {folder}."
    )
    run(cfg, progress=Console())
    record = instantiate(cfg.dataloader.test.dataset).videos[0]
    model = L2G.from_pretrained(folder, cfg.train.device)
    _report(_predict_with_bar(model, _record_source(record), folder / "predictions"))


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A config file; also relative to configs/.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train a model; the run's folder holds config, weights, metrics and curves."""
    path = find_config_file(config)
    if gpus > 1 and not dry_run:
        _relaunch(["train", str(path), *(overrides or []), *(["--resume"] if resume else [])], gpus)
    from ..engine.loop import train as run
    from ..lazy import LazyConfig, load_config

    cfg = load_config(path, overrides or [])
    if dry_run:
        typer.echo(LazyConfig.to_py(cfg))
        return
    run(cfg, resume=resume)


@app.command(name="eval")
def evaluate(
    config: Annotated[str, typer.Argument(help="A config file; also relative to configs/.")],
    overrides: Overrides = None,
    weights: Annotated[Path | None, typer.Option(help="Weights, or the folder of a run.")] = None,
    submit: Annotated[
        Path | None, typer.Option(help="Write the zip that the evaluation servers take here.")
    ] = None,
) -> None:
    """Score weights on the config's test videos; without their truth, write the zip for the server."""
    from ..engine.loop import evaluate as run
    from ..engine.metrics import print_table
    from ..lazy import load_config
    from .predict import find_weights

    cfg = load_config(find_config_file(config), overrides or [])
    if weights is not None:
        cfg.train.init_checkpoint = str(find_weights(weights))
    elif not cfg.train.get("init_checkpoint"):
        raise UserError("no weights: add --weights with a .pth file or a run's folder")
    scores = run(cfg)
    if scores:
        print_table(scores)
        bundle_results(cfg, submit)


@app.command()
def ablate(
    config: Annotated[str, typer.Argument(help="A config file; also relative to configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=A,B,C]...", help="Changes; several values are swept.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting, with the same seeds.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the runs and the table; by default the config's own.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes of each run, one per GPU.")] = 1,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME='KEY=VALUE ...'", help="A setting that is no grid; once for each."),
    ] = None,
) -> None:
    """Train a config over a grid of values and seeds; a table of means, spreads and paired differences."""
    from .ablate import ablate as run

    table = run(find_config_file(config), overrides or [], seeds, output, gpus, row or [])
    typer.echo(f"{table.read_text(encoding='utf-8')}\n{table}")


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Videos, folders or globs of frames, images; and changes to the model's config, model.KEY=VALUE.",
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(help="Weights (.pth, .safetensors), or the folder of a run.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("output/predictions"),
    threshold: Threshold = None,
    classes: Annotated[
        str | None, typer.Option(help="Only these classes, by name, with commas between.")
    ] = None,
    max_objects: Annotated[int | None, typer.Option(min=1, help="At most so many objects per frame.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1, cpu; by default a GPU if there is one.")
    ] = None,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Several videos at a time: decoding, the model and writing overlap. Same results."
        ),
    ] = False,
) -> None:
    """Segment and track the objects of videos: an annotated mp4 and a tracks.json for each."""
    if weights is None:
        raise UserError(
            "no weights: add --weights with a .pth file or a run's folder, e.g. that of `l2g demo`"
        )
    from .predict import L2G

    overrides = [text for text in inputs if _is_override(text)]
    sources, lost = _open([text for text in inputs if text not in overrides], keep_going=batch)
    model = L2G.from_pretrained(weights, device, overrides)
    if model.caveat:
        typer.echo(model.caveat)
    names = [name.strip() for name in classes.split(",")] if classes else None
    if not batch:
        for source in sources:
            _report(_predict_with_bar(model, source, output, threshold, names, max_objects))
        return

    def one(source: Source, advance: Progress) -> Prediction:
        return model.predict(source, output, threshold, names, max_objects, advance)

    lost += _predict_together(one, sources)
    if lost:
        raise UserError(f"{lost} of {len(inputs) - len(overrides)} inputs failed")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def benchmark(context: typer.Context) -> None:
    """Measure this checkout against the layout of detrex's MaskDINO: sections, --quick, --json FILE, --device."""
    from .benchmark import run_benchmark

    raise typer.Exit(run_benchmark(context.args))


@app.command()
def tables(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of runs, or folders of those.")
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option(help="Write the tables here too, .md or .csv; may be given twice.")
    ] = None,
) -> None:
    """The paper's tables, and what runs of its rows measured beside them."""
    from .tables import as_markdown, build_table, read_rows, read_runs, write_table

    configs = next(p for p in find_config_file("common/train.py").resolve().parents if p.name == "configs")
    lines = build_table(read_rows(configs), read_runs(runs or []))
    for path in output or []:
        write_table(path, lines)
    typer.echo(as_markdown(lines), nl=False)


@app.command()
def doctor() -> None:
    """Check this machine: versions, devices, video encoder, a second of the model's main operation."""
    from .doctor import check, show

    checks = check()
    show(checks)
    if any(c.status == "fail" for c in checks):
        raise typer.Exit(1)


@app.command()
def convert(
    weights: Annotated[Path, typer.Argument(help="Weights: .pth, .pkl or .safetensors.")],
    output: Annotated[Path, typer.Option(help="A folder, or with --to detrex a .pth file.")],
    config: Annotated[
        str | None, typer.Option(help="The model's config; by default a released MaskDINO is recognised.")
    ] = None,
    overrides: Overrides = None,
    to: Annotated[str, typer.Option(help="Whose names to write: ours or detrex.")] = "ours",
    partial: Annotated[bool, typer.Option("--partial", help="Accept parts that fit only in part.")] = False,
) -> None:
    """Turn other projects' weights into a folder that train, eval and predict read, or ours into detrex's names."""
    from .convert import convert as run

    for line in run(weights, output, config, overrides or [], to, partial):
        typer.echo(line)


def _is_override(text: str) -> bool:
    """`model.KEY=VALUE`, unless a file has that name."""
    return re.match(r"[~+]*model\.", text) is not None and "=" in text and not Path(text).exists()


def _relaunch(arguments: list[str], processes: int) -> None:
    """Becomes torchrun, which runs this command as several processes; it takes this process's place."""
    import torch

    from ..engine.processes import launch_command

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here")
    command = launch_command(["-m", "local2global", *arguments], processes)
    os.execv(command[0], command)


def _open(inputs: list[str], keep_going: bool) -> tuple[list[Source], int]:
    """The sources, and how many could not be opened if the others are wanted all the same."""
    from .video import open_source

    opened, lost = [], 0
    for text in inputs:
        try:
            opened.append(open_source(text))
        except UserError as error:
            if not keep_going:
                raise
            lost += 1
            typer.echo(f"l2g: {error}", err=True)
    if lost and not opened:
        raise UserError(f"none of {lost} inputs can be opened")
    if not opened:
        raise UserError("no input: name a video, a folder or a glob of frames")
    return _name_apart(opened), lost


def _name_apart(sources: list[Source]) -> list[Source]:
    """Sources of different folders may share a name; their results must not share a folder."""
    from dataclasses import replace

    taken: set[str] = set()
    apart = []
    for source in sources:
        name, number = source.name, 1
        while name in taken:
            number += 1
            name = f"{source.name}-{number}"
        taken.add(name)
        apart.append(replace(source, name=name))
    return apart


def _record_source(record: VideoRecord) -> Source:
    """A dataset's video as a source of frames."""
    from .video import FOLDER_FPS, Source

    def read() -> Iterator[Tensor]:
        return (record.frame(t) for t in range(record.length))

    return Source(Path(record.name).name, FOLDER_FPS, record.size, record.length, read)


def _predict_with_bar(
    model: L2G,
    source: Source,
    output: Path,
    threshold: float | None = None,
    classes: list[str] | None = None,
    max_objects: int | None = None,
) -> Prediction:
    """`L2G.predict` with frames per second, time left and live objects on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[live]} objects"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(source.name, total=source.length, live=0, rate="")

        def advance(done: int, total: int | None, live: int) -> None:
            speed = bar.tasks[0].speed  # None until two frames are done
            rate = f"{speed:.1f} frames/s" if speed else ""
            bar.update(task, completed=done, total=total, live=live, rate=rate)

        return model.predict(source, output, threshold, classes, max_objects, advance)


def _predict_together(one: Predict, sources: list[Source]) -> int:
    """Predicts the sources a few at a time and reports each as it ends; how many failed."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from .batch import predict_batch

    columns = (TextColumn("{task.completed:.0f} frames"), TextColumn("{task.fields[done]} videos done"))
    console = Console(stderr=True)
    start, frames, lost = time.perf_counter(), 0, 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, done=0)
        # closed at once, whatever happens here: what is under way must not go on unseen
        with closing(predict_batch(one, sources, progress=lambda _: bar.advance(task))) as results:
            for done, (source, result) in enumerate(results, start=1):
                if isinstance(result, Exception):
                    lost += 1
                    typer.echo(f"l2g: {source.name}: {result}", err=True)
                else:
                    frames += result.frames
                    _report(result)
                bar.update(task, done=done)
    seconds = time.perf_counter() - start
    rate = frames / max(seconds, 1e-9)
    typer.echo(f"{len(sources) - lost} videos, {frames} frames in {seconds:.1f} s ({rate:.1f} frames/s)")
    return lost


def _report(prediction: Prediction) -> None:
    rate = prediction.frames / max(prediction.seconds, 1e-9)
    typer.echo(f"{prediction.frames} frames in {prediction.seconds:.1f} s ({rate:.1f} frames/s)")
    typer.echo(f"  video   {prediction.video}")
    typer.echo(f"  tracks  {prediction.tracks}")
    if prediction.frames < (prediction.announced or 0):
        typer.echo(
            f"l2g: {prediction.video.parent.name}: {prediction.announced} frames are announced, "
            f"{prediction.frames} could be read; is the file complete?",
            err=True,
        )
