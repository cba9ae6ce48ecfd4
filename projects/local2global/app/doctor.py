"""`l2g doctor`: checks packages, devices, disk, the model's main operation and the video encoder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PLUGINS = ("detectron2", "detrex")
_MIN_DISK = 5 * 2**30  # bytes: checkpoints and logs of one run
_DURATION = 1.0  # seconds for which deformable attention is timed


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was checked.
        status: outcome.
        found: version, device or measurement.
        fix: what to do if the status is not "ok".
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def check() -> list[Check]:
    """Runs all checks; an exception of a check becomes a failed line."""
    lines: list[Check] = []
    for group in (_python, _packages, _device, _machine, _plugins, _attention, _video):
        try:
            lines += group()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            fix = "re-install the package with its constraints"
            lines.append(Check(group.__name__.strip("_"), "fail", problem, fix))
    return lines


def show(checks: list[Check]) -> None:
    """Prints the report as a table."""
    from rich.console import Console
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "", "found", "how to fix", title="l2g doctor")
    for line in checks:
        table.add_row(line.name, f"[{colours[line.status]}]{line.status}[/]", line.found, line.fix)
    Console().print(table)


def _python() -> Iterator[Check]:
    supported = sys.version_info >= (3, 10)
    fix = "" if supported else "use Python 3.10 or newer"
    yield Check("python", "ok" if supported else "fail", platform.python_version(), fix)


def _packages() -> Iterator[Check]:
    requirements = importlib.metadata.requires("local2global") or ()
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement:
            continue
        try:
            yield Check(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", f"pip install {name}")


def _device() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("device", "ok", f"{names} (CUDA {torch.version.cuda})")
    elif shutil.which("nvidia-smi"):
        found = "NVIDIA driver found, but torch sees no GPU"
        yield Check("device", "warn", found, "install a CUDA build of torch")
    else:
        yield Check("device", "ok", "CPU only: sufficient for the demo and inference; train on a GPU")


def _machine() -> Iterator[Check]:
    import torch

    yield Check("threads", "ok", f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores")
    free = shutil.disk_usage(Path.cwd()).free
    enough = free >= _MIN_DISK
    fix = "" if enough else "free some space, or set train.output_dir to another disk"
    yield Check("free disk", "ok" if enough else "warn", f"{free / 2**30:.0f} GiB here", fix)


def _plugins() -> Iterator[Check]:
    for name in PLUGINS:
        installed = importlib.util.find_spec(name) is not None
        yield Check(name, "ok", "importable" if installed else "not installed; optional")


def _attention() -> Iterator[Check]:
    import torch

    from ..modeling.deformable import DeformableAttention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ((6, 10), (12, 20), (24, 40), (48, 80))
    tokens = sum(height * width for height, width in shapes)
    attention = DeformableAttention().to(device)
    references = torch.rand(1, tokens, len(shapes), 2, device=device)
    value = torch.rand(1, tokens, 256, device=device)
    calls, start = 0, time.perf_counter()
    with torch.inference_mode():
        while calls == 0 or time.perf_counter() - start < _DURATION:
            finite = bool(attention(value, references, value, shapes).isfinite().all())
            calls += 1
    milliseconds = (time.perf_counter() - start) / calls * 1000
    found = f"{milliseconds:.1f} ms for {tokens} tokens on {device}"
    fix = "" if finite else "try another torch version"
    yield Check("deformable attention", "ok" if finite else "fail", found, fix)


def _video() -> Iterator[Check]:
    import torch

    from ..errors import UserError
    from .video import VideoWriter, h264_encoder, open_source

    try:
        encoder = h264_encoder()
    except UserError as error:
        yield Check("H.264", "fail", "no encoder", str(error))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        with VideoWriter(path, 10, (48, 64)) as writer:
            for _ in range(3):
                writer.write(torch.zeros(3, 48, 64, dtype=torch.uint8))
        frames = sum(1 for _ in open_source(path))
    yield Check("H.264", "ok" if frames == 3 else "fail", f"{encoder}: wrote 3 frames, read {frames}")
