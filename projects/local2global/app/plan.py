"""`l2g train CONFIG --plan`: what a training needs, computed without its data and without a GPU.

Memory is counted: training steps of small frames run on the CPU, and torch's allocator reports their peak.  For B
clips of T frames of P pixels, the peak is c + B T (a + b P), where c holds casts of the weights; three steps give
c, a and b.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ..config.targets import target_name
from ..data.clips import Augmentation
from ..data.views import View
from ..engine.memory import peak_memory
from ..engine.settings import PRECISIONS, build, require, train_settings
from ..errors import UserError
from ..randomness import keyed_generator
from ..structures import Clip, ClipTargets

#: (height, width) and frames of the counted clips.  192 pixels are whole windows of Swin-L up to stride 16.
COUNTED = (((192, 192), 1), ((192, 384), 1), ((192, 192), 2))
#: Instances of a counted clip; YouTube-VIS and OVIS have 2 and 6 a video on average.
INSTANCES = 10
#: Training videos (COCO: images with instances) by a part of their path, from the data sets' papers.
PUBLISHED = {
    "ytvis_2019": 2_238,
    "ytvis_2021": 2_985,
    "ovis": 607,
    "VIPSeg": 2_806,
    "instances_train2017.json": 117_266,
}
#: (height, width) of frames that are not on disk: most videos have 720p, most COCO images 480x640.
VIDEO_SIZE, COCO_SIZE = (720, 1280), (480, 640)
#: GPU memory in GiB for which batch, accumulation and checkpointing are suggested.
GPU_MEMORY = (16, 24, 32, 80)
#: GiB of a GPU for the CUDA context and libraries, and the part of the rest that can be filled despite fragmentation.
RESERVED, USABLE = 1.0, 0.95
#: Numbers of GPUs in the table of efficiency, and GPUs of a node.
SCALING, NODE = (4, 8, 32), 8
#: Bytes per second of an all-reduce within a node (NVLink) and between nodes (100 Gb/s).
WITHIN, BETWEEN = 100e9, 10e9
#: Share of a step after which the first gradients are ready, so that their all-reduce overlaps with the rest.
OVERLAPPED = 0.5
#: Iterations on the largest number of GPUs whose clip sizes are drawn.
DRAWN = 200


@dataclass(frozen=True)
class Source:
    """A data set of the training mixture.

    Attributes:
        name: its annotation file or folder, or the function that generates it.
        videos: number of training videos or images; None if it is neither on disk nor published.
        found: whether it is on disk or generated.
        sizes: (height, width) of its videos; one assumed size if it is not found.
        share: its share of the clips, in (0, 1].
        augment: the augmentation of its clips.
    """

    name: str
    videos: int | None
    found: bool
    sizes: Sequence[tuple[int, int]]
    share: float
    augment: Augmentation


@dataclass(frozen=True)
class StepCost:
    """Memory of a training step, fitted to counted steps.

    Attributes:
        constant: bytes c that depend neither on the frames nor on their size.
        frame: bytes a of a frame, for all queries and layers.
        pixel: bytes b of a pixel of a padded frame.
    """

    constant: float
    frame: float
    pixel: float

    def activations(self, frames: int, pixels: int) -> int:
        """Peak bytes beyond weights, gradients and optimizer state, for frames of `pixels` pixels each."""
        return round(self.constant + frames * (self.frame + self.pixel * pixels))


# --- data ---


def read_sources(cfg: DictConfig, key: str) -> list[Source]:
    """The data sets of the training loader at `key`; missing files are replaced by published counts."""
    node = OmegaConf.select(cfg, key).dataset
    keys, weights, augments = [f"{key}.dataset"], [1.0], [None]
    if "datasets" in node:
        count = len(node.datasets)
        keys = [f"{key}.dataset.datasets.{i}" for i in range(count)]
        weights = list(node.weights)
        augments = build(cfg, f"{key}.dataset.augments") if node.get("augments") else [None] * count
    default = build(cfg, f"{key}.augment")
    sources = []
    for part, weight, augment in zip(keys, weights, augments, strict=True):
        name = _name(OmegaConf.select(cfg, part))
        number: int | None
        try:
            videos = build(cfg, part).videos
            sizes, number, found = [tuple(video.size) for video in videos], len(videos), True
        except UserError:
            places = set(PurePath(name).parts)
            number = next((count for place, count in PUBLISHED.items() if place in places), None)
            sizes, found = [COCO_SIZE if "coco" in places else VIDEO_SIZE], False
        sources.append(Source(name, number, found, sizes, weight / sum(weights), augment or default))
    return sources


def _name(node: Any) -> str:
    """The annotation file or folder of a data set's config, else the name of its function."""
    for key in ("annotations", "root"):
        if key in node:
            return str(node[key])
    if "dataset" in node:
        return _name(node.dataset)
    target = node._target_
    return target if isinstance(target, str) else str(target_name(target))


def draw_sizes(sources: Sequence[Source], length: int, divisor: int, count: int) -> Tensor:
    """(count, 2) height and width of training clips after augmentation and padding to `divisor`."""
    generator = keyed_generator(0, "plan")
    shares = torch.tensor([source.share for source in sources], dtype=torch.float64)
    drawn = torch.multinomial(shares, count, replacement=True, generator=generator).tolist()
    sizes = []
    for source in (sources[i] for i in drawn):
        whole = source.sizes[int(torch.randint(len(source.sizes), (1,), generator=generator))]
        view = source.augment.view(View.whole(whole, length), generator)
        sizes.append([-(-side // divisor) * divisor for side in view.canvas or view.size])
    return torch.tensor(sizes)


# --- memory ---


def parts_of(model: nn.Module) -> dict[str, dict[str, int]]:
    """Total and trained parameters of each part of the model."""
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        first, second, *_ = name.split(".")
        part = second if first == "tracker" or second in ("backbone", "encoder", "decoder") else "heads"
        entry = parts.setdefault(part, {"parameters": 0, "trained": 0})
        entry["parameters"] += parameter.numel()
        entry["trained"] += parameter.numel() * parameter.requires_grad
    return parts


def count_step(model: nn.Module, dtype: torch.dtype | None) -> StepCost:
    """Count the memory of small training steps of a model on the CPU.

    Args:
        model: in training mode; its gradients are allocated, and changed.
        dtype: of mixed precision; None for float32.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    small, wide, longer = (_count(model, _clip(model, size, length), dtype) for size, length in COUNTED)
    pixels = [size[0] * size[1] for size, _ in COUNTED]
    pixel = (wide - small) / (pixels[1] - pixels[0])
    frame = longer - small - pixel * pixels[0]
    return StepCost(small - frame - pixel * pixels[0], frame, pixel)


def _count(model: nn.Module, clip: Clip, dtype: torch.dtype | None) -> int:
    """Peak bytes of forward and backward of a clip."""

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            losses = model([clip])
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]

    return peak_memory(step, torch.device("cpu"))


def _clip(model: Any, size: tuple[int, int], length: int) -> Clip:
    """A clip of noise in which every instance covers the whole frame."""
    frames = torch.randint(0, 256, (length, 3, *size), dtype=torch.uint8)
    ids = torch.arange(INSTANCES)
    masks = torch.ones(INSTANCES, length, *size, dtype=torch.bool)
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(INSTANCES, length, 4)
    targets = ClipTargets(ids % len(model.classes), ids, masks, boxes, masks.flatten(2).any(dim=-1))
    return Clip(frames, size, frame_ids=tuple(range(length)), targets=targets)


# --- the plan ---


def plan(cfg: DictConfig, gpus: int = 1, its: float | None = None) -> dict[str, Any]:
    """What a training needs.

    Args:
        cfg: the whole config; not modified.
        gpus: number of GPUs.
        its: measured iterations per second, for hours and efficiency.

    Returns:
        Plain values, as `show` prints them; bytes are integers.

    Raises:
        UserError: for an invalid config, or a batch that cannot be divided equally among the GPUs.
    """
    require(cfg, "model", "optimizer.params", "dataloader.train", "train")
    cfg = copy.deepcopy(cfg)
    settings = train_settings(cfg)
    loaders = cfg.dataloader.train.get("loaders")
    key = f"dataloader.train.loaders.{len(loaders) - 1}" if loaders else "dataloader.train"
    loader = OmegaConf.select(cfg, key)
    batch, length = loader.total_batch_size, loader.clip_length
    if batch % gpus:
        raise UserError(
            f"--gpus {gpus}: {key}.total_batch_size={batch} cannot be divided equally among them."
        )
    sources = read_sources(cfg, key)
    model: Any = build(cfg, "model").train()
    parts = parts_of(model)
    dtype = PRECISIONS[settings.amp.dtype] if settings.amp.enabled else None
    costs = count_steps(model, dtype)
    fixed = _fixed(cfg, model, gpus)
    per_step = batch // gpus * settings.accumulate
    sizes = draw_sizes(sources, length, getattr(model, "divisor", 1), DRAWN * max(*SCALING, batch))
    batches = Batches(per_step, length, fixed, costs, sizes)
    checkpointed = bool(getattr(model.segmenter.encoder, "checkpointing", False))
    clips = settings.max_iter * batch * settings.accumulate
    current = {
        f"{key}.total_batch_size": batch,
        "train.accumulate": settings.accumulate,
        "model.segmenter.encoder.checkpointing": checkpointed,
    }
    return {
        "parameters": parts,
        "data": [_data_row(source, clips * source.share) for source in sources],
        "iterations": settings.max_iter,
        "clips_per_iteration": batch * settings.accumulate,
        "frames_per_clip": length,
        "images_per_iteration": batch * settings.accumulate * length,
        "gpus": gpus,
        "clips_per_gpu": batch // gpus,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "largest_frame": batches.largest(batch // gpus),
        "memory": batches.memory(batch // gpus, checkpointed),
        "suggestions": [suggest(batches, gib, gpus, current) for gib in GPU_MEMORY],
        "scaling": [scaling(n, batch, sizes, costs[False], fixed["gradients"], its) for n in SCALING],
        "iterations_per_second": its,
        "hours": settings.max_iter / its / 3600 if its else None,
    }


def count_steps(model: Any, dtype: torch.dtype | None) -> dict[bool, StepCost]:
    """`count_step` without and, where the encoder supports it, with activation checkpointing."""
    encoder = model.segmenter.encoder
    configured = getattr(encoder, "checkpointing", None)
    if configured is None:
        return {False: count_step(model, dtype)}
    costs = {}
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        costs[checkpointing] = count_step(model, dtype)
    encoder.checkpointing = configured
    return costs


def _fixed(cfg: DictConfig, model: nn.Module, gpus: int) -> dict[str, int]:
    """Bytes that do not depend on the batch: weights, gradients, buckets of several GPUs, optimizer, average."""
    cfg.optimizer.params.model = model
    optimizer = build(cfg, "optimizer")
    optimizer.step()  # creates the state; the gradients are those of the counted steps
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    weights = _bytes([*model.parameters(), *model.buffers()])
    gradients = _bytes([parameter for parameter in model.parameters() if parameter.requires_grad])
    return {
        "weights": weights,
        "gradients": gradients,
        "buckets": gradients * (gpus > 1),
        "optimizer": _bytes([value for value in state if isinstance(value, Tensor)]),
        "average": weights * bool(cfg.train.model_ema.enabled),
    }


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Batches:
    """Memory of the divisions of one optimizer step into batches.

    Attributes:
        per_step: clips of a GPU in an optimizer step.
        length: frames of a clip.
        fixed: bytes that do not depend on the batch.
        costs: without and with checkpointing of the encoder.
        sizes: (count, 2) drawn height and width of padded clips.
    """

    per_step: int
    length: int
    fixed: Mapping[str, int]
    costs: Mapping[bool, StepCost]
    sizes: Tensor

    def largest(self, clips: int) -> list[int]:
        """Height and width of the largest of the drawn batches of `clips` clips, padded to its largest clip."""
        whole = self.sizes[: len(self.sizes) // clips * clips].view(-1, clips, 2).amax(dim=1)
        height, width = whole[whole.prod(dim=1).argmax()].tolist()
        return [height, width]

    def memory(self, clips: int, checkpointing: bool) -> dict[str, int]:
        """Bytes on each GPU for batches of `clips` clips."""
        height, width = self.largest(clips)
        activations = self.costs[checkpointing].activations(clips * self.length, height * width)
        parts = {**self.fixed, "activations": activations}
        return {**parts, "total": sum(parts.values())}


def suggest(batches: Batches, gib: int, gpus: int, current: Mapping[str, Any]) -> dict[str, Any]:
    """The largest batch that fits into a GPU.

    Accumulation costs no time, so checkpointing is suggested only if a single clip does not fit without it.

    Args:
        batches: memory of each batch size.
        gib: GiB of a GPU.
        gpus: number of GPUs.
        current: the config's batch size, accumulation and checkpointing, by key.

    Returns:
        `gib`, `clips_per_gpu` (0: a clip does not fit), `bytes`, and the `overrides` of changed keys.
    """
    limit = (gib - RESERVED) * USABLE * 2**30
    divisions = [clips for clips in range(batches.per_step, 0, -1) if batches.per_step % clips == 0]
    for checkpointing in batches.costs:
        for clips in divisions:
            total = batches.memory(clips, checkpointing)["total"]
            if total <= limit:
                values = (clips * gpus, batches.per_step // clips, checkpointing)
                wanted = zip(current, values, strict=True)
                overrides = {key: value for key, value in wanted if value != current[key]}
                return {"gib": gib, "clips_per_gpu": clips, "bytes": total, "overrides": overrides}
    return {"gib": gib, "clips_per_gpu": 0, "bytes": total, "overrides": {}}


def _data_row(source: Source, clips: float) -> dict[str, Any]:
    epochs = clips / source.videos if source.videos else None
    return {
        "name": source.name,
        "found": source.found,
        "videos": source.videos,
        "share": source.share,
        "clips": round(clips),
        "epochs": epochs,
    }


def scaling(
    gpus: int, batch: int, sizes: Tensor, cost: StepCost, gradients: int, its: float | None
) -> dict[str, Any]:
    """Balance of the GPUs and time of the all-reduce; a GPU has at least one clip, so a batch may be larger.

    The time of a GPU is taken as proportional to the activations of its padded clips, a + b P for a frame of P pixels.
    An iteration lasts as long as its slowest GPU.
    """
    clips = max(1, batch // gpus)
    count = len(sizes) // (gpus * clips) * gpus * clips
    pixels = sizes[:count].view(-1, gpus, clips, 2).amax(dim=2).prod(dim=2).double()
    seconds = cost.frame + cost.pixel * pixels
    balance = float(seconds.mean() / seconds.amax(dim=1).mean())
    sent = round(2 * (gpus - 1) / gpus * gradients)
    reduce = sent / (WITHIN if gpus <= NODE else BETWEEN)
    efficiency = None
    if its:
        step = 1 / its
        efficiency = balance * step / (step + max(0.0, reduce - OVERLAPPED * step))
    return {
        "gpus": gpus,
        "clips_per_gpu": clips,
        "balance": balance,
        "bytes_sent": sent,
        "all_reduce_seconds": reduce,
        "efficiency": efficiency,
    }


# --- output ---


def show(values: Mapping[str, Any], console: Console) -> None:
    """Print a plan as tables."""
    clips, length = values["clips_per_iteration"], values["frames_per_clip"]
    run = f"{values['iterations']:,} iterations of {clips} clips of {length} frames ({clips * length} images)"
    if values["hours"] is not None:
        run += f": {values['hours']:.1f} hours at {values['iterations_per_second']:g} iterations per second"
    height, width = values["largest_frame"]
    memory = (
        f"Memory of each of {values['gpus']} GPUs for {values['clips_per_gpu']} clips of {INSTANCES} instances, "
        f"{values['precision']}, largest padded frame {height}x{width}:"
    )
    blocks = (
        ("Parameters:", _parameters(values["parameters"])),
        (f"{run}. An epoch is one clip of every video.", _data(values["data"])),
        (memory, _memory(values["memory"])),
        ("Batches that fit:", _suggestions(values["suggestions"])),
        (
            f"Several GPUs, {NODE} a node, {WITHIN / 1e9:.0f} GB/s within and {BETWEEN / 1e9:.0f} GB/s between nodes:",
            _efficiency(values["scaling"]),
        ),
    )
    for text, table in blocks:
        console.print(text, highlight=False)
        console.print(table)


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _parameters(parts: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("part", "all", "trained", "frozen")
    rows = {**parts, "total": {key: sum(p[key] for p in parts.values()) for key in ("parameters", "trained")}}
    for name, row in rows.items():
        numbers = row["parameters"], row["trained"], row["parameters"] - row["trained"]
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _data(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("training set", "videos or images", "share of clips", "epochs", "on disk")
    table.columns[0].overflow = "fold"
    for row in rows:
        videos = "unknown" if row["videos"] is None else f"{row['videos']:,}"
        epochs = "-" if row["epochs"] is None else f"{row['epochs']:.1f}"
        found = "yes" if row["found"] else "not found" + (": published number" if row["videos"] else "")
        table.add_row(PurePath(row["name"]).name, videos, f"{row['share']:.0%}", epochs, found)
    return table


def _memory(parts: Mapping[str, int]) -> Table:
    table = _table(*parts)
    table.columns[0].justify = "right"
    table.add_row(*(f"{size / 2**30:.2f} GB" for size in parts.values()))
    return table


def _suggestions(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("GPU", "clips at once", "needs", "overrides")
    table.columns[3].justify, table.columns[3].overflow = "left", "fold"
    for row in rows:
        words = "\n".join(f"{key}={str(value).lower()}" for key, value in row["overrides"].items())
        clips = str(row["clips_per_gpu"]) if row["clips_per_gpu"] else "a clip does not fit"
        needs = f"{row['bytes'] / 2**30:.1f} GB"
        table.add_row(
            f"{row['gib']} GB", clips, needs, words or ("as configured" if row["clips_per_gpu"] else "")
        )
    return table


def _efficiency(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("GPUs", "clips each", "balance", "sent by each", "all-reduce", "efficiency")
    for row in rows:
        efficiency = "add --its" if row["efficiency"] is None else f"{row['efficiency']:.0%}"
        table.add_row(
            str(row["gpus"]),
            str(row["clips_per_gpu"]),
            f"{row['balance']:.0%}",
            f"{row['bytes_sent'] / 2**20:.0f} MB",
            f"{row['all_reduce_seconds'] * 1e3:.0f} ms",
            efficiency,
        )
    return table
