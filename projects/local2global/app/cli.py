"""The command `l2g`.  Heavy modules are imported when a command runs, so `l2g --help` is fast."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer

from .. import __version__
from ..config.find import find_config_file
from ..configs import FOLDER
from ..errors import UserError, first_line, one_line, wrapped_user_error
from .data import data_app
from .predict_command import WEIGHTS_HELP, predict
from .report.commands import compare, report
from .score import bundle_results, explain_parts, score_app
from .serve.command import serve

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
app.command()(predict)
app.command()(report)
app.command()(compare)
app.command()(serve)
app.add_typer(score_app, name="score")

Config = Annotated[str, typer.Argument(help="A config file; also relative to configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the config.")
]


def main() -> None:
    """Runs the command line; exits with 0, with 1 after a user error, with 2 after a usage error or a bug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata of images that can be read
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
        error = wrapped_user_error(error) or UserError(f"{key}{first_line(error)}")
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
        reason = one_line(first_line(error))
        hint = "(run again with --debug for the traceback)"
        message, status = f"l2g: unexpected {type(error).__name__}: {reason} {hint}", 2
    typer.echo(message, err=True)
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
    from ..lazy import apply_overrides, load_config, variants_of
    from .batch import predict_one_by_one
    from .predict import L2G, default_device
    from .predict_command import predict_all
    from .report.report import report as write_report
    from .showcase import write_crossing, write_showcase
    from .video import open_source

    path = find_config_file(DEMO_CONFIG)
    cfg = load_config(path)
    cfg.train.output_dir, cfg.train.device = str(output), default_device()
    cfg = apply_overrides(cfg, overrides or [], variants_of(path))
    folder = Path(cfg.train.output_dir)
    typer.echo(f"Training a tiny model on generated videos and scoring it on others; output in {folder}.")
    earlier = is_run_of(folder, cfg)
    finished = (folder / FINAL).is_file()
    run(cfg, resume=earlier and not finished, overwrite=earlier and finished, progress=Console())
    model = L2G.from_pretrained(folder, cfg.train.device)
    source = open_source(write_crossing(folder / "crossing.mp4"))
    one = partial(model.predict, output_dir=folder / "predictions")
    predict_all(partial(predict_one_by_one, one, [source]), [source])
    typer.echo(f"  picture {write_showcase(model, folder / 'demo.webp')}")
    typer.echo(f"  report  {write_report(folder / 'predictions' / source.name)}")


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
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Submit a Slurm job: nodes, gpus (of a node), cpus (of a GPU), minutes, and sbatch's options.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print parameters, memory per GPU, epochs and hours, and stop.")
    ] = False,
    its: Annotated[
        float | None, typer.Option(min=0.001, help="With --plan: measured iterations per second, for hours.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="With --plan: also write it to this file.")
    ] = None,
) -> None:
    """Train a model; the output folder holds config, weights, metrics and curves."""
    path = find_config_file(config)
    if (its is not None or json is not None) and not plan:
        raise UserError(f"{'--json' if its is None else '--its'}: only with --plan")
    if plan:
        if slurm is not None:
            raise UserError(
                "--plan: computes on this machine; leave --slurm out, and give all GPUs as --gpus"
            )
        _plan(path, overrides or [], gpus, its, json)
        return
    if slurm is not None and not dry_run:
        if gpus > 1:
            raise UserError(f"--gpus {gpus}: with --slurm, give the GPUs of a node as --slurm gpus={gpus}")
        from .slurm import submit

        job = submit(slurm, path, overrides or [], resume, overwrite)
        typer.echo(f"job {job.job_id}: {job.paths.stderr}")
        return
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


def _plan(config: Path, overrides: list[str], gpus: int, its: float | None, json: Path | None) -> None:
    """Prints what a training needs, computed without its data and without a GPU."""
    # The memory profiler logs and warns; torch reads these levels when it is imported.
    os.environ.update({"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"})
    from rich.console import Console

    from ..lazy import load_config
    from .output import write_json
    from .plan import plan, show

    values = plan(load_config(config, overrides), gpus, its)
    if json is not None:
        write_json(json, values)
    show(values, Console())


@app.command(name="eval")
def evaluate(
    config: Config,
    overrides: Overrides = None,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    submit: Annotated[
        Path | None, typer.Option(help="Zip file of the tracks, as the challenges take them.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Use a Ray cluster: HOST:PORT, or auto for one on this machine."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: number of models; default: one per GPU or core.")
    ] = None,
) -> None:
    """Score weights on the test videos of a config; without local truth, write a zip file of their tracks."""
    from ..engine.loop import evaluate as run
    from ..engine.metrics import print_table
    from ..engine.run_folder import lock_results
    from ..lazy import load_config

    replaced = [] if weights is None else ["++train.init_checkpoint=''"]
    cfg = load_config(find_config_file(config), [*(overrides or []), *replaced])
    if weights is not None:
        cfg.train.init_checkpoint = weights
    elif not cfg.train.get("init_checkpoint"):
        raise UserError(
            "no weights: add --weights with a file, the folder of a run, or a name of `l2g weights`"
        )
    if workers is not None and ray is None:
        raise UserError("--workers needs --ray")
    if ray is not None:
        from .cluster.evaluate import evaluate_videos

        run = partial(evaluate_videos, address=ray, workers=workers)
    with lock_results(cfg):
        scores = run(cfg)
        if scores:
            print_table(scores)
            explain_parts(scores)
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


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def benchmark(context: typer.Context) -> None:
    """Compare speed with the layout of detrex's MaskDINO: sections, --quick, --json FILE, --device."""
    from .benchmark import run_benchmark

    raise typer.Exit(run_benchmark(context.args))


@app.command()
def identity(
    config: Annotated[
        str, typer.Argument(help="Config of the method, or a file of --json, which is printed again.")
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Folders of runs or of ablations, or weights."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Segmenter trained on single frames: weights, or the folder of a run.")
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="Number of test videos.")] = 50,
    length: Annotated[int, typer.Option(min=2, help="Frames of a piece.")] = 16,
    against: Annotated[
        str | None,
        typer.Option(help="Row of an ablation that the others are compared with; the first if unset."),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Also measure runs with a memory of objects, without training."),
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the scores to this file.")] = None,
) -> None:
    """Compare how runs keep identities with untrained propagation, linking and an oracle of the same segmenter."""
    from rich.console import Console

    from .identity import (
        as_markdown,
        named_runs,
        read_table,
        row_of_comparison,
        seeds_as_markdown,
        with_memory,
    )
    from .identity import identity as run
    from .output import write_json

    if config.endswith(".json"):
        table = read_table(Path(config))
    elif weights is None:
        raise UserError("no weights: add --weights with the segmenter of the references")
    else:
        from ..lazy import load_config

        cfg = load_config(find_config_file(config))
        names = list(named_runs(runs or []))
        names += [row for name in names if memory for row in with_memory(name)]
        row_of_comparison(names, against)  # before hours of computing
        table = run(cfg, weights, runs or [], videos, length, Console(stderr=True), memory)
    if json is not None:
        write_json(json, table)
    typer.echo(as_markdown(table))
    if pairs := seeds_as_markdown(table, FOLDER, against):
        typer.echo(f"\n{pairs}")


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

    lines = build_table(read_rows(FOLDER), read_runs(runs or []))
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
def weights() -> None:
    """List released weights: short name, size, licence, and the file in the cache."""
    from ..weights.download import cache_folder, megabytes, pin_of
    from ..weights.find import cached_release
    from ..weights.known import RELEASES

    for name, release in RELEASES.items():
        path = cached_release(name)
        pin = pin_of(path) if path.is_file() else None
        size = megabytes(path.stat().st_size) if path.is_file() else f"about {megabytes(release.about)}"
        state = f"{path} (SHA-256 {pin.sha256[:16]}...)" if pin else "not verified yet"
        typer.echo(f"{name}: {release.title}; {size}, {release.licence}")
        typer.echo(f"  {state if path.is_file() else release.url}")
    typer.echo(f"Downloads are kept in {cache_folder()} (set L2G_CACHE for another folder).")


@app.command(name="export")
def export_step(
    output: Annotated[
        Path, typer.Argument(metavar="FILE", help="model.onnx, or model.pt2 for torch.export.")
    ],
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)],
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the frames in pixels, such as 384x640.")],
    half: Annotated[bool, typer.Option("--half", help="Convolutions and linear layers in float16.")] = False,
    overrides: Overrides = None,
) -> None:
    """Export one step of a stream: frame and slots in, predictions and slots out."""
    from .export import export as run

    for line in run(output, weights, size, half, overrides or []):
        typer.echo(line)


@app.command()
def push(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/REPO", help="Repository of the Hugging Face Hub.")
    ],
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)],
    output: Annotated[
        Path | None, typer.Option(help="Write the files to this folder instead of uploading them.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="Licence of the weights; check that the training data allow it.")
    ] = "apache-2.0",
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the model card; write and upload nothing.")
    ] = False,
) -> None:
    """Upload weights, config and a model card to the Hugging Face Hub."""
    from .push import push as run

    for line in run(repository, weights, output, licence, private, dry_run):
        typer.echo(line)


@app.command()
def convert(
    weights: Annotated[str, typer.Argument(help=WEIGHTS_HELP)],
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


def _relaunch(arguments: list[str], processes: int) -> None:
    """Replaces this process by torchrun, which runs the command in several processes."""
    import torch

    from ..engine.processes import launch_command

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--gpus {processes}: torch sees {torch.cuda.device_count()} here")
    command = launch_command(["-m", "local2global", *arguments], processes)
    os.execv(command[0], command)
