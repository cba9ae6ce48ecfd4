"""What a training found, printed before its first iteration: schedule, data, initial weights, random parts."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from ..weights.report import LoadReport, part
from .processes import world_size
from .trainer import Trainer

#: Denoising's label embedding is stored for MaskDINO, not used.
_UNUSED = ("segmenter.label_enc",)


def describe(trainer: Trainer, source: str, report: LoadReport | None) -> list[str]:
    """The lines of the block: a word, then its content.

    Args:
        trainer: the run, before its first iteration.
        source: path of the initial weights or of the resumed checkpoint; "" without.
        report: result of loading initial weights; None if the run starts without them, or is resumed.
    """
    precision = str(trainer.precision or "float32").removeprefix("torch.")
    processes = f"{world_size()} process" + "es" * (world_size() > 1)
    batches = f" of {trainer.settings.accumulate} batches" * (trainer.settings.accumulate > 1)
    lines = [
        ("train", f"{trainer.max_iter:,} iterations{batches}, {processes} on {trainer.device}, {precision}")
    ]
    summary: Callable[[], list[str]] = getattr(trainer.loader, "summary", list)
    lines += [("data", line) for line in summary()]
    if report is not None:
        lines += [("weights", f"{source}: {_loaded(report)}")]
    elif source:
        lines += [("resume", f"{source}, at iteration {trainer.start}")]
    if not trainer.start:
        lines += [("random", line) for line in random_parts(trainer.model, report)]
    words = [word if i == 0 or lines[i - 1][0] != word else "" for i, (word, _) in enumerate(lines)]
    return [f"{word:8}{text}" for word, (_, text) in zip(words, lines, strict=True)]


def _loaded(report: LoadReport) -> str:
    absent = len(report.missing) + len(report.mismatched)
    counts = f"{len(report.loaded)} of {len(report.loaded) + absent} tensors loaded"
    others = {
        "class heads matched": len(report.reshaped),
        "not used": len(report.unexpected) + len(report.dropped),
    }
    found = [f"{count} {kind}" for kind, count in others.items() if count]
    return ", ".join([counts, *found]) + "; see load_report.txt"


def random_parts(model: nn.Module, report: LoadReport | None) -> list[str]:
    """The parts of the model with random parameters, and the consequence of each; [] if there are none."""
    parameters = dict(model.named_parameters())
    missing = (
        set(parameters) if report is None else {*report.missing, *(name for name, *_ in report.mismatched)}
    )
    names = {name: p for name, p in parameters.items() if name in missing and part(name) not in _UNUSED}
    parts = list(dict.fromkeys(part(name) or name for name in names))
    frozen = list(dict.fromkeys(part(name) or name for name, p in names.items() if not p.requires_grad))
    lines = []
    if report is None:
        lines.append(
            "all parameters: set train.init_checkpoint for published scores (`l2g weights` lists names)"
        )
    elif parts:
        tracker = all(name.startswith("tracker.") for name in parts)
        why = ": pre-train them with configs/coco/l2g_r50_60k.py, as the paper does" if tracker else ""
        lines.append(", ".join(parts) + why)
    if frozen:
        lines.append(f"{', '.join(frozen)}: frozen parameters, which stay random")
    if report is not None:
        lines += dict.fromkeys(
            f"class heads: {text}" for _, text in report.reshaped if "the rest new" in text
        )
    return lines


class FirstIteration:
    """A hook that prints the time from its construction to the end of the first iteration, data loading included."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __call__(self, trainer: Trainer) -> None:
        """Print after the first iteration of this process."""
        if trainer.iteration == trainer.start:
            seconds = time.monotonic() - self._begin
            trainer.console.print(f"first iteration after {seconds:.1f} s", highlight=False)
