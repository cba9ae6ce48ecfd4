"""`l2g data view`: what the model is fed, after augmentation, with masks, ids and boxes drawn on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast

import typer

from ..data.augment import ClipAugmentation, Identity
from ..data.check import Options, check_dataset
from ..data.clips import Augmentation
from ..data.datasets import VideoDataset
from ..data.loader import build_train_loader
from ..errors import UserError
from ..lazy import instantiate, load_config
from ..structures import Clip
from .sheets import draw_clip, write_clips


class Loader(Protocol):
    """An endless iterable of batches."""

    def seek(self, iteration: int, accumulate: int = 1) -> None:
        """Go to an iteration, each of `accumulate` batches."""

    def __iter__(self) -> Iterator[list[Clip]]:
        """Batches."""


def view(
    loader: Loader,
    classes: Sequence[dict[str, Any]],
    count: int,
    path: Path,
    cell: int | None,
) -> None:
    """Draws the first clips of a loader, and says what they are."""
    batches = iter(loader)
    clips = list(islice(chain.from_iterable(batches), count))
    drawn = [draw_clip(clip, classes) for clip in clips]
    write_clips(drawn, path, cell)
    for row, clip in enumerate(drawn, 1):
        typer.echo(f"row {row}: {clip.title}")
    typer.echo(f"  {path}")


def config_loader(
    path: Path, overrides: Sequence[str], iteration: int
) -> tuple[Loader, list[dict[str, Any]]]:
    """A config's training loader from an iteration on, which makes its clips in this process, and its classes."""
    cfg = load_config(path, overrides)
    if "dataloader" not in cfg or cfg.dataloader.get("train") is None:
        raise UserError(f"{path}: this config has no dataloader.train to look at.")
    _without_workers(cfg.dataloader.train)
    classes = [{"id": c["id"], "name": c["name"]} for c in cfg.model.classes]
    loader = cast(Loader, instantiate(cfg.dataloader.train))
    loader.seek(iteration, cfg.get("train", {}).get("accumulate", 1))
    return loader, classes


def _without_workers(node: Any) -> None:
    from omegaconf import DictConfig, ListConfig

    if isinstance(node, DictConfig):
        for key in node:
            if key == "num_workers":
                node[key] = 0
            else:
                _without_workers(node._get_node(key))
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            _without_workers(node._get_node(index))


def dataset_loader(
    path: Path, images: Path | None, clips: int, length: int, plain: bool, seed: int, iteration: int
) -> tuple[Loader, list[dict[str, Any]]]:
    """Clips of some videos of a dataset on disk, as the paper's augmentation makes them or, `plain`, as they are."""
    report = check_dataset(path, images, options=Options(decode=False, samples=clips))
    if not report.samples:
        problem = f" ({report.findings[0]})" if report.findings else ""
        raise UserError(f"{path}: no video with masks to look at{problem}")
    classes = report.samples[0].classes
    videos = [s.video for s in report.samples if s.classes == classes and s.video.tracks]
    if not videos:
        raise UserError(f"{path}: none of the {len(report.samples)} videos looked at has a mask.")
    augment: Augmentation = Identity() if plain else ClipAugmentation()
    dataset = VideoDataset(videos, classes)
    loader = build_train_loader(dataset, length, augment, 1, num_workers=0, seed=seed, rank=0, world_size=1)
    loader.seek(iteration)
    return loader, classes
