"""`l2g doctor`: is this machine fit to run, and if not, what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from ..errors import UserError

PACKAGES = (
    "torch",
    "omegaconf",
    "hydra-core",
    "fvcore",
    "transformers",
    "scipy",
    "pycocotools",
    "av",
    "pillow",
    "rich",
    "typer",
    "tensorboard",
    "safetensors",
)
PLUGINS = ("detectron2", "detrex")
_ROOM = 5 * 2**30  # bytes: a run's checkpoints and curves
_PATIENCE = 1.0  # seconds of repeating the model's main operation


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, how it went, and what to do if it did not go well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def check() -> list[Check]:
    """Looks at everything; never raises, a check that breaks is a line that says so."""
    return [
        line
        for group in (_python, _packages, _device, _machine, _plugins, _attention, _video)
        for line in _run(group)
    ]


def show(checks: list[Check]) -> None:
    """Prints the report as a table."""
    from rich.console import Console
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "", "found", "how to fix", title="l2g doctor")
    for line in checks:
        table.add_row(line.name, f"[{colours[line.status]}]{line.status}[/]", line.found, line.fix)
    Console().print(table)


def _run(group: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(group())
    except Exception as error:
        name = group.__name__.strip("_")
        return [
            Check(
                name,
                "fail",
                f"{type(error).__name__}: {error}",
                "install the package again, with its constraints",
            )
        ]


def _python() -> Iterator[Check]:
    good = sys.version_info >= (3, 10)
    yield Check(
        "python", "ok" if good else "fail", platform.python_version(), "" if good else "use 3.10 or newer"
    )


def _packages() -> Iterator[Check]:
    for name in PACKAGES:
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
        yield Check(
            "device", "warn", "an NVIDIA driver, but torch sees no GPU", "install a CUDA build of torch"
        )
    else:
        yield Check("device", "ok", "CPU only: enough for the demo and for inference; train on a GPU")


def _machine() -> Iterator[Check]:
    import torch

    yield Check("threads", "ok", f"torch uses {torch.get_num_threads()} of {os.cpu_count()} cores")
    free = shutil.disk_usage(Path.cwd()).free
    roomy = free >= _ROOM
    fix = "" if roomy else "free some space, or set train.output_dir to another disk"
    yield Check("free disk", "ok" if roomy else "warn", f"{free / 2**30:.0f} GiB here", fix)


def _plugins() -> Iterator[Check]:
    for name in PLUGINS:
        if importlib.util.find_spec(name) is None:
            yield Check(name, "ok", "not installed; not needed")
        else:
            yield Check(name, "ok", "importable")


def _attention() -> Iterator[Check]:
    import torch

    from ..modeling.deformable import DeformableAttention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = ((6, 10), (12, 20), (24, 40), (48, 80))
    tokens = sum(height * width for height, width in shapes)
    attention = DeformableAttention().to(device)
    references = torch.rand(1, tokens, len(shapes), 2, device=device)
    value = torch.rand(1, tokens, 256, device=device)
    rounds, start = 0, time.perf_counter()
    with torch.inference_mode():
        while rounds == 0 or time.perf_counter() - start < _PATIENCE:
            finite = bool(attention(value, references, value, shapes).isfinite().all())
            rounds += 1
    each = (time.perf_counter() - start) / rounds * 1000
    found = f"{each:.1f} ms for {tokens} tokens on {device}"
    yield Check(
        "deformable attention",
        "ok" if finite else "fail",
        found,
        "" if finite else "try another torch version",
    )


def _video() -> Iterator[Check]:
    import torch

    from .video import VideoWriter, h264_encoder, open_source

    try:
        encoder = h264_encoder()
    except UserError as error:
        yield Check("H.264", "fail", "no encoder", str(error))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        with VideoWriter(path, Fraction(10), (48, 64)) as writer:
            for _ in range(3):
                writer.write(torch.zeros(3, 48, 64, dtype=torch.uint8))
        count = sum(1 for _ in open_source(path))
    yield Check("H.264", "ok" if count == 3 else "fail", f"{encoder}: wrote 3 frames, read {count}")
