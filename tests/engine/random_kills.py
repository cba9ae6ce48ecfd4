"""Kills trainings and predictions at random moments: python random_kills.py FOLDER TRAININGS PREDICTIONS [SEED].

A run is a fork of this process, which has imported all modules.  Half of the kills happen at a random time, half at a
random access to a file of the run.  A killed training is resumed, a third of them are killed again first.  A killed
prediction is run again, resumed, or finished from its record and then resumed.  Prints one JSON line per case:
{"run", "kills", "points", "lost", "debris"}; `lost` and `debris` name differences from a run that was not killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "engine")]

import killed_run  # noqa: E402
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402 - imported once, before the forks
from rich.console import Console  # noqa: E402

import fake_run  # noqa: E402
import fake_stream  # noqa: E402
import real_run  # noqa: E402
from local2global.app.predict import L2G  # noqa: E402
from local2global.app.result_folder import finish  # noqa: E402
from local2global.app.video import VideoWriter  # noqa: E402
from local2global.engine.loop import train  # noqa: E402
from local2global.weights.checkpoint import load_checkpoint  # noqa: E402

FRAMES, SIZE = 40, (64, 96)


class Fork:
    """A run in a forked process.

    Args:
        run: the run.
        folder: its output folder.
        listing: file to which the run writes the names of its accesses to files.
    """

    def __init__(self, run: Callable[[], Any], folder: Path, listing: Path) -> None:
        self.run, self.folder, self.listing = run, folder, listing

    def __call__(self, fatal: int = -1, delay: float | None = None) -> bool:
        """Run; kill at access number `fatal`, or after `delay` seconds.  Returns whether the run was killed."""
        process = os.fork()
        if process == 0:
            self._child(fatal)
        if delay is not None:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)  # a process that has ended is a zombie, which ignores it
        _, result = os.waitpid(process, 0)
        if os.WIFEXITED(result) and os.WEXITSTATUS(result) != 0:
            raise RuntimeError(f"the run in {self.folder} failed")
        return os.WIFSIGNALED(result)

    def _child(self, fatal: int) -> None:
        status = 1
        try:
            points = killed_run.Points(self.folder, fatal)
            killed_run.count_accesses(points)
            self.run()
            self.listing.write_text(json.dumps(points.names))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def kill_at_random(fork: Fork, draw: random.Random, accesses: int, seconds: float) -> str:
    """Start a run until a kill hits it; returns the moment of the kill."""
    while True:
        if draw.random() < 0.5:
            fatal = draw.randrange(accesses)
            if fork(fatal=fatal):
                return f"access {fatal}"
        else:
            delay = draw.uniform(0, seconds)
            if fork(delay=delay):
                return f"{delay:.2f} s"


def names(folder: Path) -> set[str]:
    """The files of a run but TensorBoard's, which a resumed run adds to."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name}


def report(**entry: Any) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


# --- Training ---


def config(folder: Path, real: bool) -> Any:
    """The run of `killed_run.py` with a linear model, or four iterations of a small Local2Global."""
    if not real:
        return fake_run.config(folder, *killed_run.SETTINGS)
    return real_run.config(folder, max_iter=4, checkpointer={"period": 2, "max_to_keep": 1})


def lost_in_training(folder: Path, whole: Path) -> list[str]:
    """What differs from the uninterrupted training."""
    lost = [] if fake_run.entries(folder) == fake_run.entries(whole) else ["metrics.jsonl"]
    found, expected = (load_checkpoint(place / "model_final.pth") for place in (folder, whole))
    for key in ("model", "ema_state"):
        tensors = expected[key] or {}
        lost += [
            f"{key}: {name}" for name, value in tensors.items() if not torch.equal(found[key][name], value)
        ]
    return lost


def kill_trainings(root: Path, number: int, draw: random.Random) -> None:
    """Kill and resume trainings; every fifth one is of a small Local2Global."""
    wholes = {}
    for real in (False, True):
        whole, listing = root / f"whole{real:d}", root / f"points{real:d}.json"
        begin = time.monotonic()
        Fork(
            lambda place=whole, real=real: train(config(place, real), progress=Console(quiet=True)),
            whole,
            listing,
        )()
        wholes[real] = whole, len(json.loads(listing.read_text())), time.monotonic() - begin
    kills = 0
    while kills < number:
        real = kills % 5 == 4
        whole, accesses, seconds = wholes[real]
        folder = root / f"training{kills}"

        def run(folder: Path = folder, real: bool = real) -> None:
            train(config(folder, real), resume=True, progress=Console(quiet=True))

        fork = Fork(run, folder, root / "points.json")
        moments = [kill_at_random(fork, draw, accesses, seconds)]
        while draw.random() < 1 / 3:
            killed = fork(fatal=draw.randrange(accesses))
            moments += ["again"] if killed else []
        fork()
        kills += len(moments)
        debris = sorted(names(folder) ^ names(whole))
        report(
            run="train",
            kills=len(moments),
            points=moments,
            lost=lost_in_training(folder, whole),
            debris=debris,
        )


# --- Prediction ---


def write_video(path: Path) -> None:
    """A short video."""
    with VideoWriter(path, 10, SIZE) as writer:
        for t in range(FRAMES):
            writer.write(torch.full((3, *SIZE), 5 * t, dtype=torch.uint8))


def lines(folder: Path) -> list[bytes]:
    """The complete lines of a record."""
    record = folder / "frames.jsonl"
    return (
        [line for line in record.read_bytes().splitlines(True) if line.endswith(b"\n")]
        if record.is_file()
        else []
    )


def kill_predictions(root: Path, number: int, draw: random.Random) -> None:
    """Kill predictions; by turns they are finished and then resumed, run again, and resumed after more kills."""
    clip = root / "clip.mp4"
    write_video(clip)
    model = L2G(fake_stream.Fake(), "cpu")
    listing, begin = root / "points.json", time.monotonic()
    Fork(lambda: model.predict(clip, root / "whole"), root / "whole" / "clip", listing)()
    seconds, accesses = time.monotonic() - begin, len(json.loads(listing.read_text()))
    whole = root / "whole" / "clip"
    for case in range(number):
        out = root / f"predict{case}"
        folder = out / "clip"
        fork = Fork(lambda out=out: model.predict(clip, out), folder, listing)
        moment = kill_at_random(fork, draw, accesses, seconds)
        recorded, expected = lines(folder), lines(whole)
        lost = [] if recorded == expected[: len(recorded)] else ["frames.jsonl is no prefix"]
        finished = case % 3 == 0 and bool(recorded)  # there is nothing to finish before the first frame
        if finished:
            Fork(lambda folder=folder: finish(folder), folder, listing)()
            lost += [] if lines(folder) == recorded else ["frames.jsonl changed"]
        if finished or case % 3 == 2:
            fork = Fork(lambda out=out: model.predict(clip, out, resume=True), folder, listing)
            while draw.random() < 1 / 3:
                fork(fatal=draw.randrange(accesses))
        fork()
        lost += [name for name in names(whole) if (folder / name).read_bytes() != (whole / name).read_bytes()]
        debris = sorted(names(folder) - names(whole))
        report(run="predict", kills=1, points=[moment, len(recorded)], lost=lost, debris=debris)


def main(root: Path, trainings: int, predictions: int, seed: int = 0) -> None:
    """Run both campaigns."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    train(config(root / "first", False), progress=Console(quiet=True))  # imports what the forks inherit
    kill_trainings(root, trainings, draw)
    kill_predictions(root, predictions, draw)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
