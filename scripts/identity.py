"""Who keeps their slot?  Identity over full occlusions on the `hard` preset of the generated videos.

    python scripts/identity.py output/hard output/hard_baseline --videos 50 --json identity.json

One column a run: occlusions over which the owner stayed the same, objects that no slot ever owned, switches to a slot
of another object.  The rules stand in `local2global.evaluation.identity`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from local2global import L2G
from local2global.data.shapes import load_shapes
from local2global.evaluation.identity import IdentityMeter


def measure(weights: Path, videos: int, console: Console) -> dict[str, int | float | None]:
    """The identity numbers of one run on the first videos of the bench."""
    model = L2G.from_pretrained(weights)
    bench = load_shapes("hard", videos, seed=0)
    meter = IdentityMeter()
    for video in track(bench.videos, description=str(weights), console=console):
        meter.follow(model.stream(video.frame(t) for t in range(video.length)), video)
    return meter.summary()


def main() -> None:
    """Measures every run and prints them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", type=Path, help="folders of runs, or weights")
    parser.add_argument("--videos", type=int, default=50, help="videos of the bench")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    rows = {str(weights): measure(weights, options.videos, console) for weights in options.weights}
    table = Table("", *rows)
    for name in next(iter(rows.values())):
        values = [row[name] for row in rows.values()]
        table.add_row(name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
