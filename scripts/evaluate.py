#!/usr/bin/env python
"""Scores runs on every benchmark of the paper that is on disk, and prints Tables 1, 2 and 4 beside the paper.

    DETECTRON2_DATASETS=FOLDER python scripts/evaluate.py RUN... [--device cuda] [--output tables.md]

A run is scored on the benchmarks that have its classes; a run on YouTube-VIS 2021 thus also on 2022.  Results are
written to RUN/inference/<benchmark>.  Where the truth is not public, a zip file of the tracks is written instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from local2global.app.predict import default_device, find_weights
from local2global.app.score import bundle_results, explain_parts
from local2global.app.tables import SCORES, Measured, Row, as_markdown, build_table, read_rows, write_table
from local2global.config.find import find_config_file
from local2global.config.saved import load_resolved
from local2global.engine.loop import evaluate
from local2global.engine.metrics import flatten
from local2global.engine.run_folder import lock_results
from local2global.errors import UserError
from local2global.lazy import load_config

TABLES = (1, 2, 4)


@dataclass(frozen=True)
class Benchmark:
    """A row of the paper on a data set.

    Attributes:
        row: the row.
        cfg: its config.
    """

    row: Row
    cfg: DictConfig

    @property
    def name(self) -> str:
        """The name of the data set."""
        return str(self.row.names[2])

    @property
    def root(self) -> Path:
        """The folder of the data set."""
        return Path(self.cfg.dataloader.test.dataset.root)


def benchmarks(rows: list[Row], configs: Path) -> list[Benchmark]:
    """The benchmarks of the rows: each config once."""
    return [
        Benchmark(row, load_config(configs / row.config))
        for row in {row.config: row for row in rows}.values()
    ]


def evaluate_run(run: Path, benchmark: Benchmark, saved: DictConfig, device: str) -> Iterator[Measured]:
    """Scores the weights of a run; yields one entry per part of the videos, e.g. short and long ones."""
    cfg = benchmark.cfg.copy()
    cfg.model = saved.model
    folder = run / "inference" / benchmark.name.lower().replace("-", "_")
    cfg.train.update(output_dir=str(run), device=device, init_checkpoint=str(find_weights(run)))
    cfg.train.model_ema = OmegaConf.select(saved, "train.model_ema") or cfg.train.model_ema
    cfg.dataloader.evaluator.output_dir = str(folder)
    with lock_results(cfg):
        scores = evaluate(cfg)
        explain_parts(scores)
        bundle_results(cfg, None)
    for task in scores:
        base = next(
            (base for base in ("segm", "panoptic") if task == base or task.startswith(f"{base}_")), None
        )
        if base is None or task == "panoptic_final":
            continue
        flat = flatten({base: scores[task]})
        named = {name: flat[key] for name, key in SCORES.items() if flat.get(key, -1) >= 0}
        part = task.removeprefix(base).strip("_")
        yield Measured(Path(f"{run} ({part})" if part else run), benchmark.row.names, named)


def evaluate_runs(runs: list[Path], device: str) -> list[dict[str, Any]]:
    """The lines of the tables; says which benchmarks are not on disk.

    Raises:
        UserError: if a run cannot be read.
    """
    configs = next(p for p in find_config_file("common/train.py").resolve().parents if p.name == "configs")
    rows = [row for row in read_rows(configs) if row.names[0] in TABLES]
    measured: list[Measured] = []
    models = {run: load_resolved(run / "config.yaml", ("model", "train")) for run in runs}
    for benchmark in benchmarks(rows, configs):
        if not benchmark.root.is_dir():
            sys.stdout.write(f"{benchmark.name}: not on disk ({benchmark.root}).\n")
            continue
        for run, saved in models.items():
            if list(saved.model.classes) != list(benchmark.cfg.model.classes):
                sys.stdout.write(f"{benchmark.name}: {run} has other classes.\n")
                continue
            sys.stdout.write(f"{benchmark.name}: {run}\n")
            measured += evaluate_run(run, benchmark, saved, device)
    return build_table(rows, measured)


def main() -> int:
    """Run and report errors caused by user input in one line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    flags.add_argument("--device", default=default_device(), help="cuda or cpu; default: first GPU")
    flags.add_argument("--output", type=Path, help="also write the tables to a .md or .csv file")
    arguments = flags.parse_args()
    try:
        lines = evaluate_runs(arguments.runs, arguments.device)
        if arguments.output:
            write_table(arguments.output, lines)
    except UserError as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return 1
    sys.stdout.write(as_markdown(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
