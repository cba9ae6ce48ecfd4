"""`l2g serve` in a process of its own: `with serving() as server: server.address`.

As a script: the command, with the model of `fake_stream` or an untrained demo model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent


@dataclass
class Server:
    """A running server.

    Attributes:
        address: of the page, without a slash at the end.
        process: the command.
        log: everything it prints.
    """

    address: str
    process: subprocess.Popen
    log: Path

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@contextmanager
def serving(folder: Path, model: str = "fake", **options: object) -> Iterator[Server]:
    """Starts a server and interrupts it at the end.

    Args:
        folder: for the log and the files of the server; no file is left but the log.
        model: "fake" or "demo".
        **options: of `l2g serve`, such as max_jobs=20.
    """
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "projects"), os.environ.get("PYTHONPATH", "")])
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", __file__, model, "--port=0", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )
    try:
        while "http://" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        address = next(word for word in log.read_text().split() if word.startswith("http://"))
        yield Server(address.rstrip("/"), process, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert [path.name for path in folder.iterdir()] == [log.name]


def main() -> None:
    """Runs the command; the model takes the place of the weights."""
    import torch
    import typer

    from fake_stream import Fake
    from local2global.app.predict import L2G
    from local2global.app.serve.command import serve
    from local2global.engine.settings import build
    from local2global.lazy import load_config

    class Slow(Fake):
        """At most ten frames per second, so that a visitor can stop a long video."""

        def stream(self, frames, past=None, objects=None):
            for prediction in super().stream(frames, past, objects):
                time.sleep(0.1)
                yield prediction

    def demo():
        torch.manual_seed(0)
        model = build(load_config(str(TESTS.parent / "configs/demo/l2g_tiny.py")), "model")
        model.threshold = 0.0  # an untrained model is never sure
        return model

    model = {"fake": Slow, "demo": demo}[sys.argv.pop(1)]
    L2G.from_pretrained = classmethod(lambda cls, *_: L2G(model(), "cpu"))
    torch.set_num_threads(1)
    app = typer.Typer()
    app.command()(serve)
    app()


if __name__ == "__main__":
    main()
