"""Targets of a config: callables by their dotted names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import UserError

#: The flags that detectron2 sets on every config node: values may be any objects.
FLAGS = {"allow_objects": True}

#: Modules, and single names, that have moved since version 0.1.  Saved runs have the old names.
MOVED = {
    "coco": "weights.class_heads",
    "data.coco": "data.readers.coco",
    "data.datasets.load_youtube_vis": "data.readers.youtube_vis.load_youtube_vis",
    "data.layouts": "data.readers.layouts",
    "data.panoptic": "data.readers.panoptic",
    "data.shapes": "data.generated.shapes",
    "data.vipseg": "data.readers.vipseg",
    "modeling.bypass": "modeling.variants",
    "optim": "engine.optim",
    "panoptic": "results.panoptic",
    "postprocess": "results.instances",
}


def current_name(name: str) -> str:
    """The dotted name of a target today, given its name when a run was saved."""
    package, _, rest = name.partition(".")
    module, _, target = rest.rpartition(".")
    if package != "local2global":
        return name
    moved = MOVED.get(rest) or (f"{MOVED[module]}.{target}" if module in MOVED else rest)
    return f"{package}.{moved}"


def locate(name: str) -> Any:
    """The object of a dotted name, its module imported.

    Raises:
        UserError: nothing has that name.
    """
    parts = current_name(name).split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                continue
            raise
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
        break
    raise UserError(f"no target '{name}': it must be the dotted name of something that can be imported")


def target_name(target: Any) -> str | None:
    """The dotted name under which `locate` finds `target`; None where there is none, as for a lambda."""
    name = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', '<')}"
    try:
        return None if "<" in name or locate(name) != target else name
    except (UserError, ImportError):
        return None


def short_name(target: Any) -> str | None:
    """The shortest such name, as detectron2 saves it: `torch.optim.AdamW`, wherever torch defines it."""
    name = target_name(target)
    home = str(getattr(target, "__module__", "")).split(".")
    for depth in range(1, len(home)) if name is not None else ():
        shorter = ".".join([*home[:depth], target.__qualname__])
        try:
            if locate(shorter) is target:
                return shorter
        except (UserError, ImportError):
            continue
    return name


def within(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of `prefixes`, or lies in one."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def nearest(word: str, choices: Sequence[str]) -> str:
    """A question after the choice most like `word`, with a space before it; empty if none is like it."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
