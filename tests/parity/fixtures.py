"""The format of a parity fixture, and the comparison of our results with its arrays.

A folder holds `meta.json` (constructor arguments and a note for each file) and `.npz` files with the arrays
`state/<detrex name>`, `in/`, `out/`, `mid/`, `grad/` and the random draws `rng/` in call order. `stateq/` stores
weights as integers; `state_quantisation` in `meta.json` gives their step.

Tolerances: outputs 1e-5 of max(1, largest entry), gradients 1e-4 of the largest entry. An absolute 1e-5 is too strict:
on another processor the real detrex differs from its own recording by 1.1e-5 where mask logits reach 21. A fixture
fails if any array is not compared or any input is not read.
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
    """The fixture needs a feature that our modules do not have."""


@dataclass
class Fixture:
    """One fixture file.

    Attributes:
        name: file name without suffix.
        constructor: constructor arguments of the upstream module.
        note: the note in meta.json.
        arrays: tensors by full name.
        quantisation: `stateq/` weights are multiples of one over this number.
        beside: the other fixtures of the folder, by name.
        read: full names of the inputs and draws read so far.
        built: transforms our module before it runs, for example into the benchmark's peer.
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
        """Return an array, or None if the fixture has no array of this name."""
        return self[name] if name in self.arrays else None

    def names(self, prefix: str) -> list[str]:
        """Return the array names that start with `prefix`, without the prefix."""
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def series(self, prefix: str) -> list[Tensor]:
        """Return the arrays `prefix`0, `prefix`1, ... ."""
        arrays: list[Tensor] = []
        while f"{prefix}{len(arrays)}" in self.arrays:
            arrays.append(self[f"{prefix}{len(arrays)}"])
        return arrays

    def argument(self, name: str, default: Any = None) -> Any:
        """Return a constructor argument."""
        if name not in self.constructor and default is None:
            raise UnsupportedError(f"the constructor has no {name}")
        return self.constructor.get(name, default)

    def expect(self, **arguments: Any) -> None:
        """Raise unless each constructor argument is absent or has the value that our module implements."""
        for name, value in arguments.items():
            actual = self.constructor.get(name, value)
            if actual != value:
                raise UnsupportedError(f"{name}={actual} is not supported, only {value}")

    def state(self) -> dict[str, Tensor]:
        """Return the weights by their upstream names."""
        state = {name: self.arrays[f"state/{name}"] for name in self.names("state/")}
        for name in self.names("stateq/"):
            state[name] = self.arrays[f"stateq/{name}"].float() / self.quantisation
        return state

    def leaf(self, name: str) -> Tensor:
        """Return an input; it requires a gradient if the fixture stores one."""
        value = self[f"in/{name}"]
        return value.clone().requires_grad_() if f"grad/{name}" in self.arrays else value

    def load(self, module: nn.Module, rows: Iterable[Row]) -> dict[str, str]:
        """Load the weights into our module; both sides must have the same tensors.

        Returns:
            Our parameter names by upstream names.
        """
        theirs = self.state()
        translation = to_ours(theirs, rows)
        if translation.unknown:
            raise UnsupportedError(f"no parameter for {', '.join(translation.unknown[:3])}")
        module.load_state_dict(translation.state)
        return {name: next(iter(to_ours({name: value}, rows).state)) for name, value in theirs.items()}


@dataclass
class Comparison:
    """Differences between our results and the arrays of a fixture.

    Attributes:
        fixture: the fixture.
        outputs: largest absolute difference of every compared array; infinite where shapes or infinities differ.
        scaled: the same divided by max(1, the array's largest entry).
        gradients: largest difference divided by the largest entry.
    """

    fixture: Fixture
    outputs: dict[str, float] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)

    def output(self, name: str, ours: Tensor) -> None:
        """Compare a tensor with the array of this full name."""
        theirs = self.fixture[name]
        finite = theirs[theirs.isfinite()].abs()
        scale = max(1.0, finite.max().item()) if finite.numel() else 1.0
        self.outputs[name] = _distance(ours.detach(), theirs)
        self.scaled[name] = self.outputs[name] / scale

    def gradient(self, name: str, ours: Tensor | None) -> None:
        """Compare a gradient with `grad/<name>`; None counts as zero."""
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
        """Compare every stored gradient of inputs (`<name>`) and of weights (`state.<upstream name>`)."""
        parameters = dict(module.named_parameters()) if module is not None else {}
        for name in self.fixture.names("grad/"):
            theirs = name.removeprefix("state.")
            if theirs == name and name in leaves:
                self.gradient(name, leaves[name].grad)
            elif theirs != name and names is not None:
                self.gradient(name, parameters[names[theirs]].grad)

    @property
    def worst(self) -> tuple[float, float, float | None]:
        """Largest difference of outputs, absolute and scaled, and of gradients (None without gradients)."""
        absolute = max(self.outputs.values(), default=0.0)
        scaled = max(self.scaled.values(), default=0.0)
        return absolute, scaled, max(self.gradients.values(), default=None)

    def problems(self) -> Iterator[str]:
        """Yield every reason why the fixture fails."""
        arrays = self.fixture.arrays
        for name in arrays:
            if name.split("/")[0] in _EXPECTED and name not in self.outputs and name not in self.gradients:
                yield f"{name} was not compared"
            if name.split("/")[0] in ("in", "rng") and name not in self.fixture.read:
                yield f"{name} was not read"
        if not (self.outputs or self.gradients):
            yield "nothing was compared"
        for kind, differences, tolerance in (
            ("max(1, its largest entry)", self.scaled, OUTPUT_TOLERANCE),
            ("its largest entry", self.gradients, GRADIENT_TOLERANCE),
        ):
            for name, difference in differences.items():
                if not difference <= tolerance:
                    yield f"{name} differs by {difference:.1e} of {kind}"


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; infinite where shapes, infinities or integers differ."""
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
    """Read every fixture of a folder, by name.

    Raises:
        UserError: if meta.json is missing or does not match the files.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise UserError(
            f"{folder}: no meta.json in this folder; record fixtures with tests/parity/record.py."
        )
    described = _described(folder / "meta.json")
    files = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    for missing, where in ((files.keys() - described, "meta.json"), (described.keys() - files, "the folder")):
        if missing:
            raise UserError(f"{folder}: {', '.join(sorted(missing))}: not in {where}.")
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
    """Read and check meta.json."""
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
    """Read the arrays of a file; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged, or not only numeric arrays ({reason}).") from error
