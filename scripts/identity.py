"""Who keeps their slot?  Identity over full occlusions on the `hard` preset of the generated videos.

    python scripts/identity.py output/hard output/hard_baseline --videos 50 --json identity.json
    python scripts/identity.py output/table3

One column a run: occlusions over which the owner stayed the same, objects that no slot ever owned, switches to a slot
of another object.  The rules stand in `local2global.evaluation.identity`.

For the folder of an `l2g ablate`, a line for each score and row instead: means over the seeds, AP too, and differences
from the first row (or that of `--against`), paired by seed, with their 95 % interval; beside them the paper's on OVIS
and YTVIS-21, where the row is one of Table 3.  What has been measured stays in each run's `identity.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from local2global import L2G
from local2global.app.ablate import Row, summarise
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError
from local2global.evaluation.identity import IdentityMeter
from local2global.lazy import LazyConfig

Numbers = dict[str, int | float | None]

#: What a comparison is about, in this order: scores of the run's evaluation, then of its identities.
COMPARED = ("AP", "AP50", "AR10", "owned_rate", "kept", "owner_changes", "switches", "never_owned")
ROOT = Path(__file__).resolve().parents[1]


def measure(weights: Path, videos: int, console: Console) -> Numbers:
    """The identity numbers of one run on the first videos of the bench."""
    model = L2G.from_pretrained(weights)
    bench = load_shapes("hard", videos, seed=0)
    meter = IdentityMeter()
    for video in track(bench.videos, description=str(weights), console=console):
        meter.follow(model.stream(video.frame(t) for t in range(video.length)), video)
    return meter.summary()


def measure_once(run: Path, videos: int, console: Console) -> Numbers:
    """The same, read from the run's `identity.json` where it is newer than the weights."""
    file, weights = run / "identity.json", run / "model_final.pth"
    if file.is_file() and file.stat().st_mtime >= weights.stat().st_mtime:
        kept: Numbers = json.loads(file.read_text(encoding="utf-8"))
        if kept["videos"] == videos:
            return kept
    numbers = measure(run, videos, console)
    file.write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    return numbers


def final_scores(run: Path) -> dict[str, float]:
    """AP and its like at the end of a run."""
    scores: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the run was killed while it wrote
        if "segm/AP" in entry:
            scores = {name.removeprefix("segm/"): value for name, value in entry.items()}
    return scores


def compare(folder: Path, videos: int, against: str | None, console: Console) -> Table:
    """The table of an ablation's finished runs."""
    results: dict[str, dict[int, dict[str, float]]] = {}
    # in the order in which they were trained, the first row first
    for weights in sorted(folder.glob("*/seed*/model_final.pth"), key=lambda file: file.stat().st_mtime):
        run = weights.parent
        numbers = {**final_scores(run), **measure_once(run, videos, console)}
        seed = int(run.name.removeprefix("seed"))
        results.setdefault(run.parent.name, {})[seed] = {
            name: float(numbers[name]) for name in COMPARED if numbers.get(name) not in (None, -1)
        }
    first = against or next(iter(results))
    if first not in results:
        raise UserError(f"--against {first}: {folder} has {', '.join(results)}")
    rows = summarise({first: results[first], **results})
    table = Table("", "row", "seeds", "mean", f"against {first} [95 %]", "", "paper OVIS / YTVIS-21")
    for name in COMPARED:
        for row in rows:
            if row.score == name:
                values = ", ".join(
                    f"{scores[name]:.4g}" for _, scores in sorted(results[row.setting].items())
                )
                paper = (
                    " / ".join(paper_differences(row.setting, first, name)) if row.setting != first else ""
                )
                table.add_row(
                    name, row.setting, values, f"{row.mean:.2f}", _difference(row), row.verdict, paper
                )
    return table


def _difference(row: Row) -> str:
    if math.isnan(row.difference):
        return ""
    reach = "" if math.isnan(row.low) else f" [{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.difference:+.2f}{reach}"


def paper_differences(row: str, first: str, score: str) -> list[str]:
    """What the paper's Table 3 says of two rows of those names; nothing where there are none."""
    found = []
    for dataset in ("ovis", "ytvis2021"):
        files = [ROOT / f"configs/ablation/table3_{name}_{dataset}.py" for name in (row, first)]
        if not all(file.is_file() for file in files):
            return []
        mine, base = (LazyConfig.load(str(file), "paper") for file in files)
        if score in mine and score in base:
            found.append(f"{mine[score] - base[score]:+.1f}")
    return found


def side_by_side(rows: dict[str, Numbers]) -> Table:
    """One column a run."""
    table = Table("", *rows)
    for name in next(iter(rows.values())):
        values = [row[name] for row in rows.values()]
        table.add_row(name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    return table


def main() -> None:
    """Measures every run and prints them side by side, or an ablation's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "weights", nargs="+", type=Path, help="folders of runs, weights, or an ablation's folder"
    )
    parser.add_argument("--videos", type=int, default=50, help="videos of the bench")
    parser.add_argument("--against", help="the row that an ablation's rows are compared with")
    parser.add_argument("--json", type=Path, help="write the numbers of runs here too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    for folder in options.weights:
        if any(folder.glob("*/seed*/model_final.pth")):
            Console(width=140).print(compare(folder, options.videos, options.against, console))
    runs = [path for path in options.weights if not any(path.glob("*/seed*/model_final.pth"))]
    if not runs:
        return
    rows = {str(weights): measure(weights, options.videos, console) for weights in runs}
    Console().print(side_by_side(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"identity.py: {error}")
