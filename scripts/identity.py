"""Identity scores of runs on the `hard` preset of the generated videos, as defined in `evaluation/identity.py`.

    python scripts/identity.py output/hard output/hard_baseline --videos 50 --json identity.json
    python scripts/identity.py output/table3 --against baseline

For runs: one column per run.  For the folder of an `l2g ablate`: one line per score and row, with the mean over the
seeds and the paired difference from the first row (or from `--against`), its 95 % interval, and the paper's difference
on OVIS and YTVIS-21 for rows of Table 3.  The scores of each run are cached in its `identity.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from local2global import L2G
from local2global.app.ablate import summarise
from local2global.app.tables import read_metrics, read_rows
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError
from local2global.evaluation.identity import IdentityMeter

Numbers = dict[str, int | float | None]

#: The scores of an ablation's table, in this order.
COMPARED = ("AP", "AP50", "AR10", "owned_rate", "kept", "owner_changes", "switches", "never_owned")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def measure(weights: Path, videos: int, console: Console) -> Numbers:
    """Computes the identity scores of one run on the first videos of the benchmark."""
    model = L2G.from_pretrained(weights)
    meter = IdentityMeter()
    for video in track(load_shapes("hard", videos, seed=0).videos, description=str(weights), console=console):
        meter.follow(model.stream(video.frame(t) for t in range(video.length)), video)
    return meter.summary()


def measure_once(run: Path, videos: int, console: Console) -> Numbers:
    """Loads the scores from `identity.json` if it is newer than the weights, else computes and saves them."""
    file, weights = run / "identity.json", run / "model_final.pth"
    if file.is_file() and file.stat().st_mtime >= weights.stat().st_mtime:
        cached: Numbers = json.loads(file.read_text(encoding="utf-8"))
        if cached["videos"] == videos:
            return cached
    numbers = measure(run, videos, console)
    file.write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    return numbers


def compare(folder: Path, videos: int, against: str | None, console: Console) -> Table:
    """Tabulates the finished runs of an ablation."""
    results: dict[str, dict[int, dict[str, float]]] = {}
    # Oldest weights first: the order of training, in which the first row is the reference.
    for weights in sorted(folder.glob("*/seed*/model_final.pth"), key=lambda file: file.stat().st_mtime):
        run = weights.parent
        evaluations = [entry for entry in read_metrics(run) if "segm/AP" in entry]
        scores = {name.removeprefix("segm/"): value for e in evaluations[-1:] for name, value in e.items()}
        scores |= measure_once(run, videos, console)
        seed = int(run.name.removeprefix("seed"))
        results.setdefault(run.parent.name, {})[seed] = {
            name: float(scores[name]) for name in COMPARED if scores.get(name) not in (None, -1)
        }
    first = against or next(iter(results))
    if first not in results:
        raise UserError(f"--against {first}: {folder} has {', '.join(results)}")
    rows = summarise({first: results[first], **results})
    table = Table("", "row", "seeds", "mean", f"against {first} [95 %]", "", "paper OVIS / YTVIS-21")
    for row in sorted(rows, key=lambda row: COMPARED.index(row.score)):
        values = [f"{scores[row.score]:.4g}" for _, scores in sorted(results[row.setting].items())]
        paper = paper_differences(row.setting, first, row.score)
        table.add_row(
            row.score,
            row.setting,
            ", ".join(values),
            f"{row.mean:.2f}",
            row.format_difference(),
            row.verdict,
            paper,
        )
    return table


def paper_differences(row: str, first: str, score: str) -> str:
    """The paper's difference between two rows of Table 3 per dataset; empty for other rows or scores."""
    scores = _table3()
    differences = [
        f"{scores[row, dataset][score] - scores[first, dataset][score]:+.1f}"
        for dataset in ("OVIS", "YTVIS-21")
        if row != first
        and {(row, dataset), (first, dataset)} <= scores.keys()
        and score in scores[row, dataset]
    ]
    return " / ".join(differences)


@functools.cache
def _table3() -> dict[tuple[str, str], Mapping[str, float]]:
    """The scores of Table 3 by row, without its "+ ", and dataset."""
    rows = [row for row in read_rows(CONFIGS) if row.names[0] == 3]
    return {(row.names[1].removeprefix("+ "), row.names[2]): row.scores for row in rows}


def side_by_side(rows: dict[str, Numbers]) -> Table:
    """One column per run, one line per score."""
    table = Table("", *rows)
    for name in next(iter(rows.values())):
        values = [row[name] for row in rows.values()]
        table.add_row(name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    return table


def main() -> None:
    """Prints the scores of runs side by side, and the table of each ablation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "weights", nargs="+", type=Path, help="folders of runs, weights, or the folder of an ablation"
    )
    parser.add_argument("--videos", type=int, default=50, help="number of videos")
    parser.add_argument("--against", help="the row that the other rows of an ablation are compared with")
    parser.add_argument("--json", type=Path, help="also write the scores of runs to this file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    ablations = [folder for folder in options.weights if any(folder.glob("*/seed*/model_final.pth"))]
    for folder in ablations:
        Console(width=140).print(compare(folder, options.videos, options.against, console))
    rows = {str(w): measure(w, options.videos, console) for w in options.weights if w not in ablations}
    if rows:
        Console().print(side_by_side(rows))
    if rows and options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"identity.py: {error}")
