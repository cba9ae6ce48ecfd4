"""Workers of a Ray pool without a model.  What happens is written to a folder, since they are other processes."""

from __future__ import annotations

import os
from pathlib import Path

from local2global.app.cluster.videos import Inspected
from local2global.errors import UserError


class Worker:
    """Does what the text of a task says."""

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
