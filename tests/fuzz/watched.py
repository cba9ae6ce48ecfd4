"""A worker process that is reused, watched and replaced when it hangs or crashes."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Seconds that one input may take, without those in which the worker waits for a processor of a busy machine.
LIMIT = 10.0


@dataclass(frozen=True)
class Outcome:
    """What one input did.

    Attributes:
        kind: "read", "refused", "fault", "hang" or "crash".
        message: text of the exception.
        where: type and place of a fault, or the signal of a crash.
        outside: effects outside the output folder.
        seconds: time in the worker.
    """

    kind: str
    message: str = ""
    where: str = ""
    outside: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether the input was read or refused, without an effect outside."""
        return self.kind in ("read", "refused") and not self.outside


class Worker:
    """A `worker.py` process.

    Args:
        scratch: a folder for its files; `input` is replaced for each input.
        limit: seconds that one input may take.
    """

    def __init__(self, scratch: Path, limit: float = LIMIT) -> None:
        self.scratch, self.limit = scratch, limit
        for name in ("input", "out", "temporary"):
            (scratch / name).mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        paths = [HERE, HERE.parent, HERE.parents[1] / "projects", os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.scratch / "temporary"),
        }
        command = [sys.executable, str(HERE / "worker.py"), str(self.scratch)]
        with (self.scratch / "stderr.txt").open("wb") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        self._process = process
        if self._answer(600) != b"ready\n":
            raise RuntimeError((self.scratch / "stderr.txt").read_text(errors="replace")[-2000:])
        return process

    def _answer(self, seconds: float) -> bytes | None:
        """The next line; b"" if the worker ended, None if it did not answer in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        begin, waited = time.monotonic(), self._waited()
        while time.monotonic() - begin - (self._waited() - waited) < seconds:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                return self._process.stdout.readline()
        return None

    def _waited(self) -> float:
        """Seconds that the worker was ready to run and waited for a processor; 0 where the system does not tell."""
        assert self._process is not None
        try:
            return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0

    def run(self, target: str, files: dict[str, bytes | Path]) -> Outcome:
        """Write the files of one input, a path as a link, and run a target on them."""
        folder = self.scratch / "input"
        shutil.rmtree(folder)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                path.symlink_to(data)
            else:
                path.write_bytes(data)
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"target": target, "folder": str(folder)}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended("crash")
        answer = self._answer(self.limit)
        if answer is None:
            return self._ended("hang")
        if not answer:
            return self._ended("crash")
        outcome = json.loads(answer)
        return Outcome(**{**outcome, "outside": tuple(outcome["outside"])})

    def _ended(self, kind: str) -> Outcome:
        process, self._process = self._process, None
        assert process is not None
        if kind == "hang":
            process.kill()
        process.wait()
        return Outcome(
            kind, where=f"{self.limit:g} s" if kind == "hang" else f"exit status {process.returncode}"
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
