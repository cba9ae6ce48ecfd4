"""Fixtures, arrays that another project produced, and the comparison with ours.

A folder holds `meta.json` (for each file the constructor's arguments and a note) and `.npz` files with
`state/<their name>`, `in/`, `out/`, `mid/`, `grad/` and, in call order, the random draws `rng/`.  `stateq/` is a state
in whole steps, whose size `state_quantisation` states.

An output agrees to 1e-5 of its largest entry, or of 1 where that is smaller; a gradient to 1e-4 of its largest entry.
Not to 1e-5 absolutely, because the real detrex does not agree with itself to that: on another processor it differs by
1.1e-5 from the numbers it recorded (mask logits up to 21, of which 1.9e-6 is the last binary place).  An array that
nobody compares and an input that nobody reads are failures too: a fixture agrees as a whole or not at all.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from local2global.errors import UserError
from local2global.weights.names import Row, to_ours

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
_EXPECTED = ("out", "mid", "grad")


class UnsupportedError(Exception):
    """The fixture asks for something that no module of ours does."""


@dataclass
class Fixture:
    """One file.

    Attributes:
        name: the file's name without its ending.
        constructor: arguments.
        note: what meta.json says of it.
        arrays: by their full names.
        quantisation: the step of a quantised state is one over this.
        beside: the other fixtures of the folder, by name.
        read: full names of the inputs and draws that were asked for.
        built: what is done to a module before it is run, e.g. to check another implementation of it.
    """

    name: str
    constructor: Mapping[str, Any]
    note: str
    arrays: Mapping[str, Tensor]
    quantisation: float = 1.0
    beside: Mapping[str, Fixture] = field(default_factory=dict, repr=False)
    read: set[str] = field(default_factory=set)
    built: Callable[[nn.Module], Any] = field(default=lambda module: module, repr=False)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.arrays:
            raise UnsupportedError(f"no array {name}")
        self.read.add(name)
        return self.arrays[name]

    def get(self, name: str) -> Tensor | None:
        """The array, or None."""
        return self[name] if name in self.arrays else None

    def names(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of arrays."""
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def series(self, prefix: str) -> list[Tensor]:
        """The arrays `prefix`0, `prefix`1, ... ."""
        found: list[Tensor] = []
        while f"{prefix}{len(found)}" in self.arrays:
            found.append(self[f"{prefix}{len(found)}"])
        return found

    def argument(self, name: str, default: Any = None) -> Any:
        """A constructor's argument."""
        if name not in self.constructor and default is None:
            raise UnsupportedError(f"the constructor has no {name}")
        return self.constructor.get(name, default)

    def expect(self, **arguments: Any) -> None:
        """Refuse arguments that a module of ours does not have, unless they have these values."""
        for name, value in arguments.items():
            given = self.constructor.get(name, value)
            if given != value:
                raise UnsupportedError(f"{name}={given} is not built here, only {value}")

    def state(self) -> dict[str, Tensor]:
        """The weights, by their names."""
        state = {name: self.arrays[f"state/{name}"] for name in self.names("state/")}
        for name in self.names("stateq/"):
            state[name] = self.arrays[f"stateq/{name}"].float() / self.quantisation
        return state

    def leaf(self, name: str) -> Tensor:
        """An input, ready to collect its gradient if the fixture holds it."""
        value = self[f"in/{name}"]
        return value.clone().requires_grad_() if f"grad/{name}" in self.arrays else value

    def load(self, module: nn.Module, rows: Iterable[Row]) -> dict[str, str]:
        """Load the weights into a module of ours; every tensor on both sides must have its fellow.

        Returns:
            Their names and ours.
        """
        theirs = self.state()
        translation = to_ours(theirs, rows)
        if translation.unknown:
            raise UnsupportedError(f"no name here for {', '.join(translation.unknown[:3])}")
        module.load_state_dict(translation.state)
        return {name: next(iter(to_ours({name: value}, rows).state)) for name, value in theirs.items()}


@dataclass
class Comparison:
    """What came out, against what should have.

    Attributes:
        fixture: the fixture.
        outputs: largest absolute difference of every array compared; infinite where shapes or infinities differ.
        scaled: the same over the array's largest entry where that is more than 1.
        gradients: largest difference over largest entry.
    """

    fixture: Fixture
    outputs: dict[str, float] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)

    def output(self, name: str, ours: Tensor) -> None:
        """Compare with the array of this full name."""
        theirs = self.fixture[name]
        finite = theirs[theirs.isfinite()].abs()
        scale = max(1.0, finite.max().item()) if finite.numel() else 1.0
        self.outputs[name] = _distance(ours.detach(), theirs)
        self.scaled[name] = self.outputs[name] / scale

    def gradient(self, name: str, ours: Tensor | None) -> None:
        """Compare with `grad/<name>`."""
        theirs = self.fixture[f"grad/{name}"]
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        ours = torch.zeros_like(theirs) if ours is None else ours
        self.gradients[f"grad/{name}"] = _distance(ours, theirs) / (scale or 1.0)

    def gradients_of(
        self,
        leaves: Mapping[str, Tensor],
        module: nn.Module | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Compare all gradients that the fixture holds, of inputs and (`state.<their name>`) of weights."""
        parameters = dict(module.named_parameters()) if module is not None else {}
        for name in self.fixture.names("grad/"):
            theirs = name.removeprefix("state.")
            if theirs == name and name in leaves:
                self.gradient(name, leaves[name].grad)
            elif theirs != name and names is not None:
                self.gradient(name, parameters[names[theirs]].grad)

    @property
    def worst(self) -> tuple[float, float, float | None]:
        """The largest difference of outputs, absolute and scaled, and of gradients, None without any."""
        absolute = max(self.outputs.values(), default=0.0)
        scaled = max(self.scaled.values(), default=0.0)
        return absolute, scaled, max(self.gradients.values(), default=None)

    def problems(self) -> Iterator[str]:
        """Everything that keeps the fixture from agreeing."""
        arrays = self.fixture.arrays
        for name in arrays:
            if name.split("/")[0] in _EXPECTED and name not in self.outputs and name not in self.gradients:
                yield f"{name} was not compared"
            if name.split("/")[0] in ("in", "rng") and name not in self.fixture.read:
                yield f"{name} was not read"
        if not (self.outputs or self.gradients):
            yield "there is nothing to compare"
        for kind, found, tolerance in (
            ("max(1, its largest entry)", self.scaled, OUTPUT_TOLERANCE),
            ("its largest entry", self.gradients, GRADIENT_TOLERANCE),
        ):
            for name, difference in found.items():
                if not difference <= tolerance:
                    yield f"{name} differs by {difference:.1e} of {kind}"


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where shapes, infinities or whole numbers are not the same."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours.to(theirs.dtype), theirs) else float("inf")
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite].double(), theirs[~finite].double()) or not ours[finite].isfinite().all():
        return float("inf")
    difference = ours[finite].double() - theirs[finite].double()
    return difference.abs().max().item() if difference.numel() else 0.0


def read_fixtures(folder: str | Path) -> dict[str, Fixture]:
    """Every fixture of a folder, by name.

    Raises:
        UserError: without meta.json, or where files and meta.json do not go together.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise UserError(f"{folder}: no meta.json in it, so these are no fixtures.")
    described = _described(folder / "meta.json")
    files = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    for alone, where in ((files.keys() - described, "meta.json"), (described.keys() - files, "the folder")):
        if alone:
            raise UserError(f"{folder}: {', '.join(sorted(alone))}: not in {where}.")
    beside: dict[str, Fixture] = {}
    for name, path in files.items():
        about = described[name]
        step = re.search(r"/\s*(\d+)", about.get("state_quantisation", ""))
        beside[name] = Fixture(
            name,
            about.get("constructor", {}),
            about.get("note", ""),
            _arrays(path),
            float(step[1]) if step else 1.0,
            beside,
        )
    return beside


def _described(path: Path) -> dict[str, dict[str, Any]]:
    """What meta.json says of each fixture."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}).") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path}: expected a dict of fixtures, got {type(meta).__name__}.")
    described = {name.removesuffix(".npz"): about for name, about in meta.items() if not name.startswith("_")}
    for name, about in described.items():
        parts = (("constructor", dict), ("note", str), ("state_quantisation", str))
        if not isinstance(about, dict) or any(
            not isinstance(about.get(k, kind()), kind) for k, kind in parts
        ):
            raise UserError(f"{path}: {name}: expected a dict with a dict 'constructor' and a text 'note'.")
    return described


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file; numbers only."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged, or more than arrays of numbers ({reason}).") from error
