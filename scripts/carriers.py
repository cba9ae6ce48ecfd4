"""Who carries an object to the next frame: its query, or the place in the row where its slot stands?

    python scripts/carriers.py output/table3/*/seed0 --videos 24

Every fourth frame is decoded twice: as it comes, and after the queries (with their boxes) have changed places.  An
owned object whose owner moves is then *carried by its query* if its new owner is where that query went, *by its slot*
if it is where the query was, else it is another's or nobody's.  Without an embedding of its own no slot can be told
from another, and what is not carried by a query there are slots that are alike.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from local2global.app.predict import find_weights
from local2global.data.generated.shapes import ShapeVideo, load_shapes
from local2global.errors import UserError
from local2global.evaluation.identity import owners
from local2global.lazy import instantiate, load_resolved
from local2global.modeling.model import Local2Global
from local2global.results.instances import VideoPostprocessor
from local2global.structures import FramePredictions, Queries
from local2global.weights.checkpoint import find_config, load_checkpoint, load_weights

FATES = ("query", "slot", "another", "nobody")


def fate(owner: int | None, query: int, slot: int) -> str:
    """Who carried an object that slot `slot` owned, whose query went to `query`, and that `owner` owns now."""
    if owner is None:
        return "nobody"
    return {query: "query", slot: "slot"}.get(owner, "another")


@torch.inference_mode()
def carriers(
    model: Local2Global, video: ShapeVideo, generator: torch.Generator, every: int = 4
) -> Counter[str]:
    """How often an owned object of one video was carried by what."""
    fates: Counter[str] = Counter()
    past: Queries | None = None
    for t in range(video.length):
        features = model.encode([video.frame(t)])
        found = model.step(features, past)
        if past is not None and t % every == 0:
            order = torch.randperm(past.embed.shape[1], generator=generator)
            swapped = model.step(features, Queries(past.embed[:, order], past.boxes[:, order]))
            went = order.argsort().tolist()  # where each slot's query lies now
            masks = video.masks(t)
            fates.update(
                fate(now, went[slot], slot)
                for slot, now in zip(
                    _owners(model, found, masks), _owners(model, swapped, masks), strict=True
                )
                if slot is not None and went[slot] != slot
            )
        past = found.queries
    return fates


def _owners(model: Local2Global, found: FramePredictions, masks: Tensor) -> list[int | None]:
    height, width = masks.shape[1:]
    post = VideoPostprocessor((height, width), threshold=model.threshold, aggregate=model.aggregate)
    try:
        return owners(post.update(found), masks)
    finally:
        post.close()


def load(run: Path) -> Local2Global:
    """The model of a run, ready to stream."""
    weights = find_weights(run)
    model: Local2Global = instantiate(load_resolved(find_config(weights), ("model",)).model)
    load_weights(model, load_checkpoint(weights), source=str(weights))
    return model.eval()


def main() -> None:
    """One line a run."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or weights")
    parser.add_argument("--preset", default="hard", help="of the generated videos")
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the videos")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    videos = load_shapes(options.preset, options.videos, seed=options.seed).videos
    table = Table("run", "objects", *FATES)
    for run in options.runs:
        model = load(run)
        generator = torch.Generator().manual_seed(0)
        fates: Counter[str] = Counter()
        for video in track(videos, description=str(run), console=Console(stderr=True)):
            assert isinstance(video, ShapeVideo)
            fates += carriers(model, video, generator)
        total = sum(fates.values())
        shares = (f"{fates[name] / total:.3f}" if total else "" for name in FATES)
        table.add_row(str(run), str(total), *shares)
    Console().print(table)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"carriers.py: {error}")
