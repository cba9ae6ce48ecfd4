"""`l2g data view`: draws training clips after augmentation, with masks, ids and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import typer

from ..data.augment import ClipAugmentation, Identity
from ..data.check import Options, check_dataset
from ..data.datasets import VideoDataset
from ..data.loader import TrainLoader, build_train_loader
from ..engine.settings import build
from ..errors import UserError
from ..lazy import load_config
from .sheets import draw_clip, write_clips

Classes = list[dict[str, Any]]


def view(loader: TrainLoader, classes: Classes, count: int, path: Path, cell: int | None) -> None:
    """Draws the first `count` clips of a loader into one file and prints their titles."""
    clips = islice(chain.from_iterable(loader), count)
    pictures = [draw_clip(clip, classes) for clip in clips]
    write_clips(pictures, path, cell)
    for row, picture in enumerate(pictures, 1):
        typer.echo(f"row {row}: {picture.title}")
    typer.echo(f"  {path}")


def config_loader(path: Path, overrides: Sequence[str], iteration: int) -> tuple[TrainLoader, Classes]:
    """Builds the training loader of a config, without worker processes, at an iteration, and its class list."""
    cfg = load_config(path, overrides)
    if "dataloader" not in cfg or cfg.dataloader.get("train") is None:
        raise UserError(f"{path}: this config has no dataloader.train.")
    for node in (cfg.dataloader.train, *cfg.dataloader.train.get("loaders", ())):
        if "num_workers" in node:
            node.num_workers = 0
    classes = [{"id": c["id"], "name": c["name"]} for c in cfg.model.classes]
    loader = cast(TrainLoader, build(cfg, "dataloader.train"))
    loader.seek(iteration, cfg.get("train", {}).get("accumulate", 1))
    return loader, classes


def dataset_loader(
    path: Path, images: Path | None, clips: int, length: int, plain: bool, seed: int, iteration: int
) -> tuple[TrainLoader, Classes]:
    """Builds a loader for some videos of a dataset on disk, with the paper's augmentation unless `plain`."""
    report = check_dataset(path, images, options=Options(decode=False, samples=clips))
    if not report.samples:
        problem = f" ({report.findings[0]})" if report.findings else ""
        raise UserError(f"{path}: no video with masks{problem}")
    classes = report.samples[0].classes
    videos = [s.video for s in report.samples if s.classes == classes and len(s.video.ids)]
    if not videos:
        raise UserError(f"{path}: none of the {len(report.samples)} sampled videos has a mask.")
    loader = build_train_loader(
        VideoDataset(videos, classes),
        length,
        Identity() if plain else ClipAugmentation(),
        1,
        num_workers=0,
        seed=seed,
        rank=0,
        world_size=1,
    )
    loader.seek(iteration)
    return loader, classes
