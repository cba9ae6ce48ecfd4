"""Compare our code with the layout of detrex's MaskDINO: same weights, same results, one process.

    python scripts/benchmark.py frame attention --json benchmark.json
    python scripts/benchmark.py all --quick
    python scripts/benchmark.py gpu --device cuda --json gpu.json --markdown gpu.md      # eight minutes on a GPU

Ratios are medians of peer time / our time over alternating rounds, with the interquartile range. The command fails if
the results of the two arms differ by more than the row's limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no log lines of the profiler

import torch
from bench_common import Bench, Row, environment
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local2global.app.output import markdown_table

#: Module and function of each section.
SECTIONS = {
    "attention": ("bench_stream", "attention"),
    "frame": ("bench_stream", "frame"),
    "gpu": ("bench_gpu", "gpu"),
    "scaling": ("bench_stream", "scaling"),
    "clip": ("bench_training", "clip"),
    "memory": ("bench_training", "memory"),
    "peers": ("bench_peers", "peers"),
    "data": ("bench_data", "data"),
    "predict": ("bench_predict", "predict"),
    "cluster": ("bench_cluster", "cluster"),
    "scorer": ("bench_scorer", "scorer"),
}
CPU_ONLY = {"data", "scorer", "cluster"}


def measure(section: str, bench: Bench) -> list[Row]:
    """Return the rows of one section; an exception ends the section, and its rows so far are kept."""
    module, function = SECTIONS[section]
    rows: list[Row] = []
    try:
        rows.extend(getattr(importlib.import_module(module), function)(bench))
    except Exception as error:
        traceback.print_exc()
        rows.append({"section": section, "name": "stopped", "error": f"{type(error).__name__}: {error}"})
    return rows


def write(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    """Write the rows atomically."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps({**head, "rows": rows}, indent=1), encoding="utf-8")
    os.replace(partial, path)


HEAD = ("section", "name", "pass", "dtype", "mode", "ours", "peer", "ratio", "IQR", "agree", "more")
#: Columns of single sections, printed as "more": name and format.
MORE = {
    "iterations_per_s": "{:.2f} it/s",
    "frames_per_s": "{:.1f} frames/s",
    "peak_bytes": "{:.3g} bytes at peak",
    "planned_bytes": "{:.3g} bytes planned",
    "measured_bytes": "{:.3g} bytes measured",
    "error": "{}",
}


def cells(row: Row) -> list[str]:
    """The printed cells of a row, one for each name in `HEAD`."""
    return [
        *(str(row.get(key, "")) for key in HEAD[:5]),
        *(_seconds(row.get(key)) for key in ("ours_s", "peer_s")),
        *("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("ratio", "iqr")),
        {True: "yes", False: "NO", None: ""}[row.get("agree")],
        ", ".join(text.format(row[key]) for key, text in MORE.items() if row.get(key) is not None),
    ]


def table(rows: list[Row]) -> Table:
    """Format rows for a terminal."""
    result = Table(*HEAD)
    for row in rows:
        result.add_row(*map(escape, cells(row)), style="red" if row.get("agree") is False else None)
    return result


def markdown(rows: list[Row], head: dict[str, Any]) -> str:
    """Format rows as a Markdown table below a line on the machine."""
    machine = f"{head['device']}, torch {head['versions']['torch']}, commit {head['commit']}"
    return f"{machine}\n\n{markdown_table(HEAD, map(cells, rows))}\n"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def select(sections: Sequence[str], device: torch.device) -> list[str]:
    """Return the sections to run; `all` on a GPU leaves out the sections that only use the CPU."""
    if "all" not in sections:
        return list(sections)
    return [name for name in SECTIONS if device.type == "cpu" or name not in CPU_ONLY]


class _Parser(argparse.ArgumentParser):
    """A parser that prints errors as one line, like the commands of `l2g`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"l2g: benchmark: {message}\n")


def parse() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = _Parser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*SECTIONS, "all"]
    parser.add_argument("sections", nargs="+", choices=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds, small sizes: about two minutes a section"
    )
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--device", help="cpu (the default, except for the section gpu) or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="write the printed table to this file")
    options = parser.parse_args()
    if options.device is None and "gpu" in options.sections:
        parser.error(
            "the section gpu needs a GPU: add --device cuda, or --device cpu to try it out at small size"
        )
    options.device = options.device or "cpu"
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return options


def main() -> int:
    """Run the sections, print and write their rows."""
    options = parse()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # both arms compute in float32
    bench = Bench(options.quick, device, options.compile)
    rows: list[Row] = []
    head, console = environment(device), Console(width=120)
    cpu = head["cpu"]
    console.print(
        f"{head['device']}, {cpu['cores']} cores, {cpu['capability']}, bf16 in hardware: {cpu['bf16']}; "
        f"torch {head['versions']['torch']}, BLAS {head['blas']}, {head['threads']} thread(s)"
    )
    for section in select(options.sections, device):
        new = measure(section, bench)
        rows += new
        if new:
            console.print(table(new))
        if options.json:  # after every section: an interrupted run keeps its rows
            write(options.json, environment(device), rows)
    if options.markdown:
        options.markdown.write_text(markdown(rows, head), encoding="utf-8")
    differing = [f"{row['section']} {row['name']}" for row in rows if row.get("agree") is False]
    if differing:
        sys.stderr.write(f"the results differ: {', '.join(differing)}\n")
    stopped = [f"{row['section']} {row['name']} ({row['error']})" for row in rows if "error" in row]
    if stopped:
        sys.stderr.write(f"sections that stopped: {', '.join(stopped)}\n")
    return 1 if differing or stopped else 0


if __name__ == "__main__":
    sys.exit(main())
