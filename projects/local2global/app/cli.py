"""The command `l2g`.  Heavy modules are imported when a command runs, so `l2g --help` is fast."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from .. import __version__
from ..config.find import find_config_file
from ..errors import UserError, wrapped_user_error
from .data import data_app
from .score import bundle_results, score_app

if TYPE_CHECKING:
    from ..data.datasets import VideoRecord
    from .batch import Predict
    from .result_folder import Prediction
    from .source import Source, TimedFrame

DEMO_CONFIG = "demo/l2g_tiny.py"

# click's usage error: typer bundles or imports click, depending on its version.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    name="l2g",
    help="Local2Global: online video instance segmentation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich's help would double the time of `l2g --help`
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(score_app, name="score")

Config = Annotated[str, typer.Argument(help="A config file; also relative to configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the config.")
]


def main() -> None:
    """Runs the command line; exits with 0, with 1 after a user error, with 2 after a usage error or a bug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(args=arguments, prog_name="l2g", standalone_mode=False))
    except Exception as error:
        if "--debug" in sys.argv[1:] and not isinstance(error, _UsageError):
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Prints one line for an exception and exits."""
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        error = wrapped_user_error(error) or UserError(f"{key}{str(error).splitlines()[0]}")
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "l2g"
        message, status = error.format_message(), 2
        if "\n" not in message:  # a command without arguments prints its whole help
            message = f"l2g: {message} (see {command} -h)"
    elif isinstance(error, UserError):
        message, status = f"l2g: {error}", 1
    elif isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        message, status = f"l2g: {file}{error.strerror or error}", 1
    else:
        first_line = (str(error).strip().splitlines() or [""])[0]
        hint = "(run again with --debug for the traceback)"
        message, status = f"l2g: unexpected {type(error).__name__}: {first_line} {hint}", 2
    typer.echo(re.sub(r" at 0x[0-9a-f]+", "", message), err=True)  # an object's address says nothing
    sys.exit(status)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"l2g {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; works before or after a command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Local2Global: online video instance segmentation."""


@app.command()
def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Output folder.")] = Path("output/demo"),
) -> None:
    """Train a tiny model on generated videos, score it on held-out videos and draw some of them.

    An interrupted run of the demo is resumed; a finished one is replaced.
    """
    from rich.console import Console

    from ..engine.loop import train as run
    from ..engine.run_folder import FINAL, is_run_of
    from ..lazy import apply_overrides, instantiate, load_config, variants_of
    from .predict import L2G, default_device
    from .showcase import write_showcase

    path = find_config_file(DEMO_CONFIG)
    cfg = load_config(path)
    cfg.train.output_dir, cfg.train.device = str(output), default_device()
    cfg = apply_overrides(cfg, overrides or [], variants_of(path))
    folder = Path(cfg.train.output_dir)
    typer.echo(f"Training a tiny model on generated videos and scoring it on others; output in {folder}.")
    earlier = is_run_of(folder, cfg)
    finished = (folder / FINAL).is_file()
    run(cfg, resume=earlier and not finished, overwrite=earlier and finished, progress=Console())
    record = instantiate(cfg.dataloader.test.dataset).videos[0]
    model = L2G.from_pretrained(folder, cfg.train.device)
    run_model = partial(model.predict, output_dir=folder / "predictions")
    _predict_all(run_model, [_record_source(record)], batch=False)
    typer.echo(f"  picture {write_showcase(model, folder / 'demo.webp')}")


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per GPU.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train a model; the output folder holds config, weights, metrics and curves."""
    path = find_config_file(config)
    if gpus > 1 and not dry_run:
        flags = [name for name, value in (("--resume", resume), ("--overwrite", overwrite)) if value]
        _relaunch(["train", str(path), *(overrides or []), *flags], gpus)
    from ..engine.loop import train as run
    from ..lazy import LazyConfig, load_config

    cfg = load_config(path, overrides or [])
    if dry_run:
        typer.echo(LazyConfig.to_py(cfg))
        return
    run(cfg, resume=resume, overwrite=overwrite)


@app.command(name="eval")
def evaluate(
    config: Config,
    overrides: Overrides = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file, or the folder of a run.")] = None,
    submit: Annotated[Path | None, typer.Option(help="Zip file for an evaluation server.")] = None,
) -> None:
    """Score weights on the test videos of a config; without their truth, write the zip file for the server."""
    from ..engine.loop import evaluate as run
    from ..engine.metrics import print_table
    from ..lazy import load_config
    from .predict import find_weights

    cfg = load_config(find_config_file(config), overrides or [])
    if weights is not None:
        cfg.train.init_checkpoint = str(find_weights(weights))
    elif not cfg.train.get("init_checkpoint"):
        raise UserError("no weights: add --weights with a .pth file or the folder of a run")
    scores = run(cfg)
    if scores:
        print_table(scores)
        bundle_results(cfg, submit)


@app.command()
def ablate(
    config: Config,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=A,B,C]...", help="Overrides; a key with several values is swept."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per setting; all settings use the same seeds.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Folder of runs and table; default: named after the config's.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Processes per run, one per GPU.")] = 1,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME='KEY=VALUE ...'", help="A setting outside the grid; may be repeated."),
    ] = None,
) -> None:
    """Train a config over a grid of values and seeds; print means, deviations and paired differences."""
    from .ablate import ablate as run

    table = run(find_config_file(config), overrides or [], seeds, output, gpus, row or [])
    typer.echo(f"{table.read_text(encoding='utf-8')}\n{table}")


@app.command()
def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Videos, folders or globs of frames, images; and overrides of the model, model.KEY=VALUE.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights file (.pth, .safetensors), or the folder of a run.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Output folder.")] = Path("output/predictions"),
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Minimal score of reported objects; default: the model's."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Reported classes, separated by commas.")] = None,
    max_objects: Annotated[
        int | None, typer.Option(min=1, help="Maximal number of objects per frame.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu; default: first GPU.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Process several videos at a time.")] = False,
    finish: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the files of a killed predict; no INPUT.")
    ] = None,
) -> None:
    """Segment and track the objects of videos; write an annotated mp4 and the objects as JSON for each."""
    if finish is not None:
        from .result_folder import finish as finish_folder

        _report(finish_folder(finish))
        return
    if weights is None:
        raise UserError(
            "no weights: add --weights with a .pth file or the folder of a run, e.g. of `l2g demo`"
        )
    from .predict import L2G

    inputs = inputs or []
    overrides = [text for text in inputs if _is_override(text)]
    sources, failed = _open([text for text in inputs if text not in overrides], skip_errors=batch)
    model = L2G.from_pretrained(weights, device, overrides)
    if model.caveat:
        typer.echo(model.caveat)
    run = partial(
        model.predict,
        output_dir=output,
        threshold=threshold,
        classes=[name.strip() for name in classes.split(",")] if classes else None,
        max_objects=max_objects,
    )
    failed += _predict_all(run, sources, batch)
    if failed:
        raise UserError(f"{failed} of {len(inputs) - len(overrides)} inputs failed")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def benchmark(context: typer.Context) -> None:
    """Compare speed with the layout of detrex's MaskDINO: sections, --quick, --json FILE, --device."""
    from .benchmark import run_benchmark

    raise typer.Exit(run_benchmark(context.args))


@app.command()
def tables(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders that contain runs.")
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option(help="Also write the tables to a .md or .csv file; may be repeated.")
    ] = None,
) -> None:
    """Print the paper's tables beside the scores of runs."""
    from .tables import as_markdown, build_table, read_rows, read_runs, write_table

    configs = next(p for p in find_config_file("common/train.py").resolve().parents if p.name == "configs")
    lines = build_table(read_rows(configs), read_runs(runs or []))
    for path in output or []:
        write_table(path, lines)
    typer.echo(as_markdown(lines), nl=False)


@app.command()
def doctor() -> None:
    """Check this machine: packages, devices, video encoder, speed of the model's main operation."""
    from .doctor import check, show

    checks = check()
    show(checks)
    if any(line.status == "fail" for line in checks):
        raise typer.Exit(1)


@app.command()
def convert(
    weights: Annotated[Path, typer.Argument(help="Weights: .pth, .pkl or .safetensors.")],
    output: Annotated[Path, typer.Option(help="Output folder; with --to detrex a .pth file.")],
    config: Annotated[
        str | None, typer.Option(help="Config of the model; default: MaskDINO checkpoints are recognised.")
    ] = None,
    overrides: Overrides = None,
    to: Annotated[str, typer.Option(help="Parameter names to write: ours or detrex.")] = "ours",
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept parts of the model that are filled incompletely.")
    ] = False,
) -> None:
    """Convert weights of other projects for train, eval and predict, or ours to detrex's names."""
    from .convert import convert as run

    for line in run(weights, output, config, overrides or [], to, partial):
        typer.echo(line)


def _is_override(text: str) -> bool:
    """Whether an input is an override of the model and no file.

    Raises:
        UserError: if it is an override of another part of a config.
    """
    match = re.match(r"[~+]*(\w+)\.[\w.]+(=|$)", text)
    if match is None or Path(text).exists() or not (match[2] or text.startswith("~")):
        return False
    if match[1] != "model":
        hint = " The device is set with --device." if match[1] == "train" else ""
        raise UserError(f"{text}: predict takes overrides of the model only, model.KEY=VALUE.{hint}")
    return True


def _relaunch(arguments: list[str], processes: int) -> None:
    """Replaces this process by torchrun, which runs the command in several processes."""
    import torch

    from ..engine.processes import launch_command

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here")
    command = launch_command(["-m", "local2global", *arguments], processes)
    os.execv(command[0], command)


def _open(inputs: list[str], skip_errors: bool) -> tuple[list[Source], int]:
    """Opens all inputs; returns the sources, with unique names, and the number of skipped inputs."""
    from dataclasses import replace

    from .video import open_source

    sources: dict[str, Source] = {}
    failed = 0
    for text in _group_frames(inputs):
        try:
            source = open_source(text) if isinstance(text, str) else _open_frames(text)
        except UserError as error:
            if not skip_errors:
                raise
            failed += 1
            typer.echo(f"l2g: {error}", err=True)
            continue
        name, number = source.name, 1
        while name in sources:  # sources of different folders may have one name
            number += 1
            name = f"{source.name}-{number}"
        sources[name] = replace(source, name=name)
    if failed and not sources:
        raise UserError(f"none of {failed} inputs can be opened")
    if not sources:
        raise UserError("no input: name a video, a folder or a glob of frames")
    return list(sources.values()), failed


def _group_frames(inputs: list[str]) -> list[str | list[Path]]:
    """Joins image files of one folder whose names differ in numbers only: the shell has expanded a glob.

    Files that differ in size, or hold several frames, stay separate inputs.
    """
    from .image_source import IMAGE_SUFFIXES, is_one_size

    groups: dict[object, list[str]] = {}
    for text in inputs:
        path = Path(text)
        is_frame = path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        key = (path.resolve().parent, re.sub(r"\d+", "0", path.name)) if is_frame else object()
        groups.setdefault(key, []).append(text)
    joined: list[str | list[Path]] = []
    for texts in groups.values():
        paths = list(map(Path, dict.fromkeys(texts)))
        if len(paths) > 1 and is_one_size(paths):
            joined.append(paths)
        else:
            joined.extend(texts)
    return joined


def _open_frames(paths: list[Path]) -> Source:
    """Image files as the frames of one video, named after their folder."""
    from .image_source import open_images
    from .video import natural_key

    folder = paths[0].resolve().parent
    typer.echo(f"l2g: {folder}: {len(paths)} numbered images are read as one video", err=True)
    return open_images(folder.name, sorted(paths, key=natural_key), None)


def _record_source(record: VideoRecord) -> Source:
    """A video of a dataset as a source."""
    from .source import FOLDER_FPS, Source, at_rate

    def read() -> Iterator[TimedFrame]:
        return at_rate(map(record.frame, range(record.length)), FOLDER_FPS)

    return Source(Path(record.name).name, FOLDER_FPS, record.size, record.length, read)


def _predict_all(predict: Predict, sources: list[Source], batch: bool) -> int:
    """Predicts all sources and reports each when it ends.

    Args:
        predict: writes the results of one source.
        sources: the sources.
        batch: process several sources at a time, and continue after failures.

    Returns:
        Number of failed sources.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from .batch import CONCURRENCY, predict_batch
    from .output import progress_bar

    fields = ("description", "fields[rate]", "fields[objects]")
    name, rate, live = (TextColumn(f"{{task.{field}}}") for field in fields)
    start, frames, failed = time.perf_counter(), 0, 0
    with progress_bar(name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), live) as bar:
        tasks = {
            source.name: bar.add_task(source.name, total=source.length, visible=False, rate="", objects="")
            for source in sources
        }

        def advance(source: Source, done: int, objects: int) -> None:
            speed = bar.tasks[tasks[source.name]].speed  # None until two frames are done
            rate = f"{speed:.1f} frames/s" if speed else ""
            bar.update(
                tasks[source.name], completed=done, visible=True, rate=rate, objects=f"{objects} objects"
            )

        # An exception below must stop the running videos at once: garbage collection may come much later.
        with closing(predict_batch(predict, sources, CONCURRENCY if batch else 1, advance)) as results:
            for source, result in results:
                bar.update(tasks[source.name], visible=False)
                if not isinstance(result, Exception):
                    frames += result.frames
                    _report(result)
                elif batch:
                    failed += 1
                    typer.echo(f"l2g: {source.name}: {result}", err=True)
                else:
                    raise result
    if batch:
        typer.echo(f"{len(sources) - failed} videos, {_rate(frames, time.perf_counter() - start)}")
    return failed


def _rate(frames: int, seconds: float) -> str:
    return f"{frames} frames in {seconds:.1f} s ({frames / max(seconds, 1e-9):.1f} frames/s)"


def _report(prediction: Prediction) -> None:
    typer.echo(_rate(prediction.frames, prediction.seconds))
    objects = ", ".join(f"{count} {name}" for name, count in prediction.objects.items())
    typer.echo(f"  objects {objects or 'none'}")
    typer.echo(f"  video   {prediction.video}")
    typer.echo(f"  tracks  {prediction.tracks}")
    if prediction.frames < (prediction.announced or 0):
        typer.echo(
            f"l2g: {prediction.folder.name}: the file declares {prediction.announced} frames, "
            f"{prediction.frames} could be read; is it complete?",
            err=True,
        )
