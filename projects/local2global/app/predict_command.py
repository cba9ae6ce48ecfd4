"""The command `l2g predict`: opens the inputs, runs the model on each, and reports what was written."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Outcome, Report
    from .draw import Look
    from .result_folder import Prediction
    from .source import Source

WEIGHTS_HELP = (
    "Weights: a file, the folder of a run, a name of `l2g weights`, https://... or hf://OWNER/REPO."
)


Run = Callable[["Report"], Generator["Outcome", None, None]]

_LISTED = 10  # objects of a class whose times are printed


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Videos, folders or globs of frames, images; - for standard input, a camera's number, addresses; "
            "and overrides of the model, model.KEY=VALUE.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help=f"{WEIGHTS_HELP} Default: maskdino-r50, downloaded once.")
    ] = None,
    output: Annotated[str, typer.Option(help="Output folder.")] = "output/predictions",
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Minimal score of reported objects; default: the model's."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Reported classes, separated by commas.")] = None,
    max_objects: Annotated[
        int | None, typer.Option(min=1, help="Maximal number of objects per frame.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frames per second of images; of a video, instead of its time stamps."),
    ] = None,
    start: Annotated[str, typer.Option(help="First frame: seconds or [H:]MM:SS.")] = "0",
    end: Annotated[str | None, typer.Option(help="End: seconds or [H:]MM:SS.")] = None,
    every: Annotated[int, typer.Option(min=1, help="2 uses every second frame, 3 every third.")] = 1,
    size: Annotated[
        int | None, typer.Option(min=16, help="Shorter edge in pixels to which the frames are resized.")
    ] = None,
    live: Annotated[
        bool | None,
        typer.Option("--live/--no-live", help="Drop frames rather than lag; default: cameras and rtsp only."),
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write a JSON line per frame to FILE, - is stdout."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu; default: first GPU.")] = None,
    color_by: Annotated[
        Literal["id", "class"], typer.Option(help="One colour per identity or per class.")
    ] = "id",
    hide: Annotated[
        str | None, typer.Option(help="Parts that are not drawn: masks, boxes, labels; separated by commas.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(help="More formats, separated by commas: png, masks, coco, mot, mots, csv, crops."),
    ] = None,
    objects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Objects of the first frame: a PNG of ids or colours, or annotations as .json.",
        ),
    ] = None,
    only_objects: Annotated[
        bool, typer.Option("--only-objects", help="Report the objects of --objects only.")
    ] = False,
    batch: Annotated[bool, typer.Option("--batch", help="Process several videos at a time.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; complete videos are skipped.")
    ] = False,
    finish: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the files of a killed predict, or more formats with --save."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Predict many videos on a Ray cluster: HOST:PORT, or auto for one on this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: number of models; default: one per GPU or core.")
    ] = None,
    pieces: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="With --ray: cut longer videos at key frames; every piece has identities of its own.",
        ),
    ] = None,
) -> None:
    """Segment and track the objects of videos; write an annotated mp4 and the objects as JSON for each."""
    from ..results.exports import check_exports

    formats = check_exports(name.strip() for name in (save or "").split(",") if name.strip())
    begin, stop = _seconds("--start", start), None if end is None else _seconds("--end", end)
    choose = partial(_choose, start=begin, end=stop, every=every, size=size, live=live)
    if finish is not None:
        from .result_folder import finish as finish_folder

        named = _open(inputs, fps, choose, skip_errors=False)[0] if inputs else {}
        source = next((source for source, _ in named.values()), None)
        _report(finish_folder(finish, formats, source))
        return
    from .batch import predict_batch, predict_one_by_one, processes_for
    from .predict import L2G

    look = _look(color_by, hide)
    inputs = inputs or []
    overrides = [text for text in inputs if _is_override(text)]
    videos = [text for text in inputs if text not in overrides]
    options: dict[str, Any] = {
        "threshold": threshold,
        "classes": [name.strip() for name in classes.split(",")] if classes else None,
        "max_objects": max_objects,
        "look": look,
        "save": formats,
    }
    if ray is not None:
        one = {"batch": batch, "resume": resume, "live": live, "jsonl": jsonl}
        _refuse("--ray", **one, objects=objects, only_objects=only_objects)
        from .cluster.predict import predict_videos
        from .cluster.videos import Settings

        frames = (fps, begin, stop, every, size, pieces)
        settings = Settings(output, _weights(weights), device, overrides, *frames, options, sys.argv)
        predict_videos(videos, settings, ray, workers)
        return
    _refuse("one process", workers=workers, pieces=pieces)
    if "://" in output:
        raise UserError(f"--output {output}: one process writes to a disk; other places need --ray")
    opened, failed = _open(videos, fps, choose, skip_errors=batch)
    sources = [source for source, _ in opened.values()]
    if jsonl is not None and len(sources) > 1:
        raise UserError(f"--jsonl takes one input, not {len(sources)}")
    given = _objects(objects, only_objects, sources)
    batch = batch and len(sources) > 1
    weights = _weights(weights)
    model = L2G.from_pretrained(weights, device, overrides)
    piped = jsonl == "-"  # standard output is for the lines alone
    if model.caveat:
        typer.echo(model.caveat, err=piped)
    options |= {"output_dir": Path(output), "resume": resume}
    run: Run
    with _open_lines(jsonl) as lines:
        if batch:
            _check_batch(sources)
            # A wrong class is one error, not one per video.
            model.start(sources[0].size, classes=options["classes"])
            run = partial(
                predict_batch,
                model,
                partial(L2G.from_pretrained, weights, device, overrides),
                {name: reopen for name, (_, reopen) in opened.items()},
                options,
                processes_for(model.device, len(sources)),
            )
        else:
            predict_one = partial(
                model.predict, lines=lines, objects=given, only_objects=only_objects, **options
            )
            run = partial(predict_one_by_one, predict_one, sources)
        failed += predict_all(run, sources, piped)
    if failed:
        raise UserError(f"{failed} of {len(videos)} inputs failed")


def _refuse(mode: str, **options: object) -> None:
    """Checks that no option of another mode is set.

    Raises:
        UserError: naming the first option that is set.
    """
    for name, value in options.items():
        if value not in (None, False):
            raise UserError(f"--{name.replace('_', '-')}: not an option of {mode}; see docs/cluster.md")


def _weights(name: str | None) -> str:
    """The weights of --weights, or the default ones, which are announced."""
    from ..weights.known import DEFAULT, RELEASES

    if name is None:
        typer.echo(f"l2g: no --weights: using {DEFAULT} ({RELEASES[DEFAULT].title})", err=True)
    return name or DEFAULT


@contextmanager
def _open_lines(path: str | None) -> Iterator[BinaryIO | None]:
    """The file of --jsonl."""
    if path is None:
        yield None
    elif path == "-":
        yield sys.stdout.buffer
    else:
        try:
            file = open(path, "wb")  # noqa: SIM115 - an error of the block is no error of --jsonl
        except OSError as error:
            raise UserError(f"--jsonl {path}: cannot be written ({error.strerror})") from error
        with file:
            yield file


def _seconds(option: str, text: str) -> float:
    """Seconds from "12.5", "3:20" or "1:02:03"."""
    try:
        parts = [float(part) for part in text.split(":")]
        if len(parts) > 3 or any(not 0 <= part < math.inf for part in parts):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {text}: expected seconds or [H:]MM:SS") from None
    return sum(part * 60.0**power for power, part in enumerate(reversed(parts)))


def _choose(
    source: Source, start: float, end: float | None, every: int, size: int | None, live: bool | None
) -> Source:
    """The frames that the options select."""
    from .source import select

    if live is not None:
        source = replace(source, live=live)
    return select(source, start, end, every, size)


def _look(color_by: Literal["id", "class"], hide: str | None) -> Look:
    from .draw import PARTS, Look

    hidden = frozenset(part.strip() for part in (hide or "").split(",") if part.strip())
    unknown = sorted(hidden - set(PARTS))
    if unknown:
        raise UserError(f"--hide {hide}: no part '{unknown[0]}'; the parts are {', '.join(PARTS)}")
    return Look(color_by, frozenset(part for part in PARTS if part in hidden))


def _objects(path: Path | None, only: bool, sources: list[Source]) -> Tensor | None:
    """The masks of `--objects`, which describe the first frame of the only source."""
    from .objects import read_objects

    if path is None:
        if only:
            raise UserError("--only-objects: name the objects with --objects")
        return None
    if len(sources) != 1:
        raise UserError(f"--objects: {path} describes one video, {len(sources)} are given")
    return read_objects(path, sources[0].size)


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


def _check_batch(sources: list[Source]) -> None:
    """Checks that other processes can open the sources.

    Raises:
        UserError: naming the first that can be read only once.
    """
    for source in sources:
        if source.identity is None:
            raise UserError(
                f"{source.name}: a camera, a pipe or an address is read once; predict it without --batch"
            )


def _open(
    inputs: list[str], fps: float | None, choose: Callable[[Source], Source], skip_errors: bool
) -> tuple[dict[str, tuple[Source, Callable[[], Source]]], int]:
    """Opens all inputs.

    Returns:
        the sources by unique names, each with a function that opens it again in another process; and the number of
        skipped inputs.
    """
    from .source import unique_name

    sources: dict[str, tuple[Source, Callable[[], Source]]] = {}
    failed = 0
    for text in _group_frames(inputs):
        try:
            source = _open_one(text, fps, choose)
        except UserError as error:
            if not skip_errors:
                raise
            failed += 1
            typer.echo(f"l2g: {error}", err=True)
            continue
        if not isinstance(text, str):
            place = text[0].resolve().parent
            typer.echo(f"l2g: {place}: {len(text)} numbered images are read as one video", err=True)
        name = unique_name(source.name, sources)  # sources of different folders may have one name
        sources[name] = replace(source, name=name), partial(_open_one, text, fps, choose, name)
    if failed and not sources:
        raise UserError(f"none of {failed} inputs can be opened")
    if not sources:
        raise UserError("no input: name a video, a folder or a glob of frames")
    return sources, failed


def _open_one(
    text: str | list[Path], fps: float | None, choose: Callable[[Source], Source], name: str | None = None
) -> Source:
    """Opens an input, or image files as the frames of one video, which is named after their folder."""
    from .image_source import open_images
    from .source import checked_rate
    from .video import natural_key, open_source

    if isinstance(text, str):
        source = open_source(text, fps)
    else:
        rate = None if fps is None else checked_rate(fps)
        source = open_images(text[0].resolve().parent.name, sorted(text, key=natural_key), rate)
    source = choose(source)
    return source if name is None else replace(source, name=name)


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


def predict_all(run: Run, sources: list[Source], err: bool = False) -> int:
    """Predicts all sources and reports each when it ends.

    Args:
        run: predicts the sources; called with the function that takes the progress.
        sources: the sources.
        err: report on standard error.

    Returns:
        Number of failed sources.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from .output import progress_bar

    fields = ("description", "fields[rate]", "fields[objects]")
    name, rate, live = (TextColumn(f"{{task.{field}}}") for field in fields)
    start, frames, failed = time.perf_counter(), 0, 0
    with progress_bar(name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), live) as bar:
        tasks = {
            source.name: bar.add_task(source.name, total=source.length, visible=False, rate="", objects="")
            for source in sources
        }

        def advance(name: str, done: int, objects: int) -> None:
            speed = bar.tasks[tasks[name]].speed  # None until two frames are done
            rate = f"{speed:.1f} frames/s" if speed else ""
            bar.update(tasks[name], completed=done, visible=True, rate=rate, objects=f"{objects} objects")

        # An exception below must stop the running videos at once: garbage collection may come much later.
        with closing(run(advance)) as results:
            for video, result in results:
                bar.update(tasks[video], visible=False)
                if not isinstance(result, Exception):
                    frames += result.frames
                    _report(result, err)
                else:
                    failed += 1
                    typer.echo(f"l2g: {video}: {result}", err=True)
    if len(sources) > 1:
        typer.echo(f"{len(sources) - failed} videos, {_rate(frames, time.perf_counter() - start)}", err=err)
    return failed


def _rate(frames: int, seconds: float) -> str:
    return f"{frames} frames in {seconds:.1f} s ({frames / max(seconds, 1e-9):.1f} frames/s)"


def _report(prediction: Prediction, err: bool = False) -> None:
    """Prints what was found and which files were written."""
    say = partial(typer.echo, err=err)
    say(_rate(prediction.frames, prediction.seconds))
    objects = ", ".join(f"{count} {name}" for name, count in prediction.objects.items())
    say(f"  objects {objects or _nothing(prediction)}")
    width = max((len(name) for name in prediction.objects), default=0)
    for name in prediction.objects:
        for seen in [entry for entry in prediction.seen if entry.name == name][:_LISTED]:
            say(f"    {name:{width}} #{seen.id:<3} {_clock(seen.first)} - {_clock(seen.last)}")
        if prediction.objects[name] > _LISTED:
            say(f"    {name:{width}} and {prediction.objects[name] - _LISTED} more")
    say(f"  video   {prediction.video}")
    say(f"  tracks  {prediction.tracks}")
    for path in prediction.saved:
        say(f"  saved   {path}")
    if prediction.warning:
        typer.echo(prediction.warning, err=True)


def _nothing(prediction: Prediction) -> str:
    """The summary of a video without objects."""
    if prediction.threshold is None:
        return "none"
    best = prediction.best_score
    text = f"nothing above threshold {prediction.threshold:g}"
    return text if best is None else f"{text}; the best score was {best:.2g}"


def _clock(seconds: float) -> str:
    """Hours, if any, minutes and seconds: 0:04.20."""
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"
