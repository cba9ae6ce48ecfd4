"""A process that reads hostile files: python worker.py SCRATCH.

Each line of standard input is {"target", "folder"}.  Each line of standard output is an outcome: {"kind", "message",
"where", "outside", "seconds"}.  `kind` is "read", "refused" (a proper `UserError`) or "fault" (another exception, or a
message that breaks the rules).  `outside` lists effects outside the output folder.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path

#: Private memory in bytes that one input may use beyond that of the idle worker.
MAX_MEMORY = 2 << 30

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATH_EVENTS = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
PROCESS_EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect")


class Effects:
    """An audit hook that records writes outside some folders, new processes and network connections."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed, self.active = (*allowed, "/dev/null"), False
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITE_FLAGS and not isinstance(path, int):
                self._check(event, path)
        elif event in PATH_EVENTS:
            for path in arguments[:2]:
                self._check(event, path)
        elif event in PROCESS_EVENTS:
            self.seen.append(f"{event} {arguments[:1]}")

    def _check(self, event: str, path: object) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            full = os.path.realpath(os.fsdecode(path))
            if not any(full == place or full.startswith(f"{place}{os.sep}") for place in self.allowed):
                self.seen.append(f"{event} {full}")


def rule_broken(message: str) -> str:
    """Which rule for messages a message breaks; "" if none."""
    if "\n" in message or "\r" in message:
        return "more than one line"
    if "unexpected " in message.lower() and "error" in message.lower():
        return '"unexpected"'
    if re.search(r" at 0x[0-9a-f]{6,}", message):
        return "an object's address"
    if len(message) > 2000:
        return "longer than 2000 characters"
    return "empty" if not message.strip() else ""


def place_of(error: BaseException) -> str:
    """Type of an exception, and the innermost line of the package in its traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "local2global" in f.filename]
    last = frames[-1] if frames else None
    line = f"{Path(last.filename).name}:{last.lineno}" if last else "outside the package"
    return f"{type(error).__name__} in {line}"


def attempt(function, folder: Path) -> dict:
    """The outcome of one input."""
    from local2global.errors import UserError

    begin = time.perf_counter()
    outcome = {"kind": "read", "message": "", "where": ""}
    try:
        function(folder)
    except UserError as error:
        broken = rule_broken(str(error))
        outcome = {"kind": "fault" if broken else "refused", "message": str(error)[:500], "where": ""}
        if broken:
            outcome["where"] = f"message is {broken}: {place_of(error)}"
    except BaseException as error:  # a MemoryError and a SystemExit are faults too
        outcome = {"kind": "fault", "message": str(error)[:500], "where": place_of(error)}
    return {**outcome, "seconds": time.perf_counter() - begin}


def limit_memory() -> None:
    """Limit private memory to `MAX_MEMORY` more than the process has."""
    used = 1024 * next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData")
    )
    resource.setrlimit(resource.RLIMIT_DATA, (used + MAX_MEMORY, used + MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(scratch: Path) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    import targets

    targets.prepare(scratch)
    # Only the output folder and temporary files may be written.
    effects = Effects([os.path.realpath(scratch / name) for name in ("out", "temporary")])
    if sys.platform == "linux":
        limit_memory()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        effects.seen, effects.active = [], True
        outcome = attempt(targets.TARGETS[request["target"]], Path(request["folder"]))
        effects.active = False
        answers.write(json.dumps({**outcome, "outside": effects.seen[:3]}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
