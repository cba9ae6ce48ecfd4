"""Ours against the layout in which detrex's MaskDINO works: same weights, same results, one process.

    python scripts/benchmark.py frame attention --json benchmark.json
    python scripts/benchmark.py all --quick
    python scripts/benchmark.py all --device cuda --compile --json gpu.json      # every GPU row in one call

Ratios are medians of peer / ours over alternating rounds, with their interquartile range; a row whose two results
differ by more than its limit says so and makes the command fail.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its profiler says when it starts and when it stops

import torch
from bench_measure import Bench, Row, surroundings
from rich.console import Console
from rich.table import Table

#: Each section's module and function; `run(quick)` is the form of those that know no peer layout.
SECTIONS = {
    "attention": ("bench_inference", "attention"),
    "stages": ("bench_inference", "stages"),
    "frame": ("bench_inference", "frame"),
    "gpu": ("bench_gpu", "gpu"),
    "clip": ("bench_training", "clip"),
    "matcher": ("bench_training", "matcher"),
    "scaling": ("bench_scaling", "scaling"),
    "peers": ("bench_peers", "peers"),
    "data": ("bench_data", "run"),
    "scorer": ("bench_scorer", "run"),
}


def measure(section: str, bench: Bench) -> list[Row]:
    """The rows of one section; none, with a word, where its module is not there."""
    module, function = SECTIONS[section]
    try:
        run = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        sys.stderr.write(f"{section}: no {module}.py beside this script\n")
        return []
    rows: list[Row] = []
    try:
        for row in run(bench.quick) if function == "run" else run(bench):
            rows.append({"section": section, **row, "iqr": _spread(row.get("iqr"))})
    except Exception as error:  # whatever one section meets, the others' rows are worth having
        traceback.print_exc()
        rows.append({"section": section, "name": "stopped", "error": f"{type(error).__name__}: {error}"})
    return rows


def _spread(iqr: float | tuple[float, float] | None) -> float | None:
    """The range of a section that gives the two quartiles."""
    return float(iqr[1] - iqr[0]) if isinstance(iqr, (tuple, list)) else iqr


def write(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    """Puts the file in place when it is whole."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps({**head, "rows": rows}, indent=1), encoding="utf-8")
    os.replace(partial, path)


def table(rows: list[Row]) -> Table:
    """What a person reads of the rows."""
    made = Table("section", "name", "pass", "dtype", "mode", "ours", "peer", "ratio", "IQR", "agree")
    for row in rows:
        made.add_row(
            *(str(row.get(key, "")) for key in ("section", "name", "pass", "dtype", "mode")),
            *(_seconds(row.get(key)) for key in ("ours_s", "peer_s")),
            *("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("ratio", "iqr")),
            {True: "yes", False: "[red]NO[/red]", None: ""}[row.get("agree")],
        )
    return made


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def sections_of(asked: Sequence[str], device: torch.device) -> list[str]:
    """The sections that are measured; of all, on a GPU, those that use it."""
    if "all" not in asked:
        return list(asked)
    return [name for name, (_, call) in SECTIONS.items() if device.type == "cpu" or call != "run"]


class _Parser(argparse.ArgumentParser):
    """One line where others print their usage too, as all commands of `l2g` do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"l2g: benchmark: {message}\n")


def main() -> int:
    """Measures, prints, writes."""
    parser = _Parser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sections",
        nargs="+",
        choices=[*SECTIONS, "all"],
        metavar="SECTION",
        help=", ".join([*SECTIONS, "all"]),
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds, small sizes: two minutes a section")
    parser.add_argument("--compile", action="store_true", help="also what torch.compile makes of ours")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    # float32 is float32 in both arms: with tensor cores' ten bits their results would differ by a thousandth
    torch.backends.cudnn.allow_tf32 = False
    bench = Bench(options.quick, device, options.compile)
    rows: list[Row] = []
    console = Console(width=120)
    for section in sections_of(options.sections, device):
        found = measure(section, bench)
        rows += found
        console.print(table(found))
        if options.json:  # after every section: a long run that is stopped keeps what it has
            write(options.json, surroundings(device), rows)
    disagreeing = [f"{row['section']} {row['name']}" for row in rows if row.get("agree") is False]
    if disagreeing:
        sys.stderr.write(f"the results differ: {', '.join(disagreeing)}\n")
    stopped = [f"{row['section']} ({row['error']})" for row in rows if "error" in row]
    if stopped:
        sys.stderr.write(f"sections that stopped: {', '.join(stopped)}\n")
    return 1 if disagreeing or stopped else 0


if __name__ == "__main__":
    sys.exit(main())
