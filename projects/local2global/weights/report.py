"""Load report: which tensors of a checkpoint were loaded, renamed, re-mapped or skipped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a state dict into a model.

    Attributes:
        loaded: names of loaded tensors.
        missing: names of the model that the checkpoint lacks.
        unexpected: names of the checkpoint that the model lacks.
        mismatched: (name, shape in the model, shape in the checkpoint) of tensors that were not loaded.
        reshaped: (name, description) of class heads whose rows were re-mapped.
        dropped: (name in the checkpoint, reason) of tensors that no model of this package uses.
        project: the project whose parameter names the checkpoint has; None for this package.
        notes: further remarks, one line each.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    reshaped: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    project: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def half_loaded(self) -> tuple[str, ...]:
        """The parts of the model of which some tensors were loaded and others were not."""
        mismatched = {part(name) for name, _, _ in self.mismatched}
        incomplete = {part(name) for name in self.missing} | mismatched
        touched = {part(name) for name in self.loaded} | mismatched
        return tuple(sorted(incomplete & touched))

    def summary(self) -> list[str]:
        """One line per part of the model, then one line per mismatched, re-mapped or dropped tensor."""
        reshaped = tuple(name for name, _ in self.reshaped)
        kinds = {
            "loaded": tuple(name for name in self.loaded if name not in reshaped),
            "reshaped": reshaped,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": tuple(name for name, _, _ in self.mismatched),
        }
        counts: dict[str, Counter[str]] = {}
        for kind, names in kinds.items():
            for name in names:
                counts.setdefault(part(name), Counter())[kind] += 1
        lines = [
            f"{module}: " + ", ".join(f"{count[kind]} {kind}" for kind in kinds if count[kind])
            for module, count in counts.items()
        ]
        reasons = Counter(reason for _, reason in self.dropped)
        return [
            *([f"parameter names of {self.project}"] if self.project else []),
            *lines,
            *(f"{name}: {theirs} for {ours}" for name, ours, theirs in self.mismatched),
            *(f"{name}: {description}" for name, description in self.reshaped),
            *(f"{count} dropped: {reason}" for reason, count in reasons.items()),
            *self.notes,
        ]

    def refusal(self) -> str:
        """Error message for a checkpoint of another model."""
        loaded_tracker = any(name.startswith("tracker.") for name in self.loaded)
        only_tracker = self.missing and all(name.startswith("tracker.") for name in self.missing)
        if self.loaded and not loaded_tracker and not self.mismatched and only_tracker:
            return (
                "no tracker in these weights. Add model.tracker=bypass: "
                "identities are then matched, not learned."
            )
        bad = [*self.missing, *(f"{name} {theirs} for {ours}" for name, ours, theirs in self.mismatched)]
        unknown = f": {', '.join(self.unexpected[:2])}" if self.unexpected else ""
        remedy = "Use the config that they were trained with."
        if self._prefix:
            remedy = f"The names that fit begin with '{self._prefix}': save these tensors alone, without the prefix."
        return (
            f"weights of another model: {len(self.loaded)} tensors fit, {len(self.missing)} are missing, "
            f"{len(self.mismatched)} have another shape ({_first(bad)}), {len(self.unexpected)} are "
            f"unknown{unknown}. {remedy}"
        )

    @property
    def _prefix(self) -> str:
        """The prefix with which every missing name is among the unexpected ones; "" if there is none."""
        first, unexpected = next(iter(self.missing), ""), set(self.unexpected)
        prefixes = [name.removesuffix(first) for name in self.unexpected if first and name.endswith(first)]
        fits = (p for p in prefixes if all(p + name in unexpected for name in self.missing))
        return next(fits, "")

    def partial_refusal(self) -> str:
        """Error message for a checkpoint that fills a part of the model incompletely."""
        shapes = [f"{name} {theirs} for {ours}" for name, ours, theirs in self.mismatched]
        bad = [*shapes, *(name for name in self.missing if part(name) in self.half_loaded)]
        return (
            f"only some of {', '.join(self.half_loaded)} fits ({_first(bad)}). Use a config with the same sizes, or "
            "load the tensors that fit with train.init_partial=true (--partial)."
        )


def part(name: str) -> str:
    """The part of a model that a tensor belongs to: `segmenter.encoder`, `tracker.aligner`."""
    return ".".join(name.split(".")[:-1][:2])


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
