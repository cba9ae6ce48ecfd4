"""What the tests of `--ray` need: workers without a model, a run with random weights, and short videos."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from local2global.app.cluster.videos import Inspected
from local2global.app.video import VideoWriter, open_source
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.weights.checkpoint import save_checkpoint

MODEL = Path(__file__).parents[1] / "configs" / "common" / "models" / "l2g_tiny.py"


def write_run(folder: Path) -> Path:
    """The folder of a run of the tiny model with random weights, which reports every slot."""
    torch.manual_seed(0)
    config = load_config(MODEL, ["model.test_size=[64,96]", "model.threshold=0.0"])
    save_resolved(config, folder / "config.yaml")
    save_checkpoint(folder / "model_final.pth", {"model": instantiate(config.model).state_dict()})
    return folder


def write_clip(path: Path, frames: int, seed: int) -> Path:
    """A video of random blocks."""
    generator = torch.Generator().manual_seed(seed)
    with VideoWriter(path, 12, (64, 96)) as writer:
        for _ in range(frames):
            blocks = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8, generator=generator)
            writer.write(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2))
    return path


def assert_same(folder: Path, alone: Path) -> None:
    """The outputs of a video are those of another run; the threads of x264 do not always choose alike."""
    for file in ("annotations.json", "frames.jsonl", "results.json"):
        assert (folder / file).read_bytes() == (alone / file).read_bytes(), folder / file
    videos = [open_source(place / "video.mp4").read() for place in (folder, alone)]
    for (frame, time), (other, other_time) in zip(*videos, strict=True):
        assert time == other_time
        assert (frame.float() - other.float()).abs().mean() < 2


class Worker:
    """Does what the text of a task says, and writes it to a log, since it is another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> None:
        if (self.folder / "broken").exists():
            raise UserError("weights.pth: no such weights")

    def work(self, task: str) -> str:
        with (self.folder / "log").open("a") as log:
            log.write(f"{task}\n")
        attempt = (self.folder / "log").read_text().splitlines().count(task)
        if task == "always dies" or (task == "dies once" and attempt == 1):
            os._exit(1)
        if task == "fails twice" and attempt <= 2:
            raise OSError("the network is down")
        if task == "poison":
            raise UserError("no video stream in this file")
        return f"{task}, attempt {attempt}"


class Idle:
    """A worker of `l2g predict` that does nothing."""

    def __init__(self, settings: object) -> None:
        pass

    def load(self) -> None:
        pass

    def inspect(self, jobs: list) -> list:
        return [Inspected(job, len(job.name)) for job in jobs]

    def predict(self, job: object) -> dict:
        return {"input": job.input, "name": job.name, "status": "done", "frames": 1, "outputs": ["video.mp4"]}
