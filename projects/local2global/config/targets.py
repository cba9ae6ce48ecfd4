"""Targets of a config: callables by dotted name, and the arguments they accept."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_origin

from ..errors import UserError

#: Flags that detectron2 sets on every config node: values may be any objects.
FLAGS = {"allow_objects": True}

#: Modules, and single names, that moved since version 0.1.  Saved runs name the old places.
MOVED = {
    "coco": "weights.class_heads",
    "data.coco": "data.readers.coco",
    "data.datasets.load_youtube_vis": "data.readers.youtube_vis.load_youtube_vis",
    "data.layouts": "data.readers.layouts",
    "data.panoptic": "data.readers.panoptic",
    "data.shapes": "data.generated.shapes",
    "data.vipseg": "data.readers.vipseg",
    "modeling.aligner.IdentityStartAligner": "modeling.variants.IdentityStartAligner",
    "modeling.bypass.BypassTracker": "modeling.variants.ImageTracker",
    "modeling.variants.BypassTracker": "modeling.variants.ImageTracker",
    "modeling.tracker.FromProposals": "modeling.variants.FromProposals",
    "optim": "engine.optim",
    "panoptic": "results.panoptic",
    "postprocess": "results.instances",
}


def current_name(name: str) -> str:
    """Translate a dotted name of an earlier version to its present place."""
    package, _, rest = name.partition(".")
    if package != "local2global":
        return name
    if rest in MOVED:
        return f"{package}.{MOVED[rest]}"
    module, _, target = rest.rpartition(".")
    return f"{package}.{MOVED[module]}.{target}" if module in MOVED else name


def locate(name: str) -> Any:
    """Import the object with a dotted name.

    Raises:
        UserError: if there is none.
    """
    parts = current_name(name).split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            target: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                continue
            raise
        for part in parts[cut:]:
            target = getattr(target, part, None)
        if target is not None:
            return target
        break
    raise UserError(f"no target '{name}': expected the dotted name of an importable object")


def target_name(target: Any) -> str | None:
    """The dotted name by which `locate` finds `target`; None if there is none, as for a lambda."""
    name = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', '<')}"
    try:
        return None if "<" in name or locate(name) != target else name
    except (UserError, ImportError):
        return None


def short_name(target: Any) -> str | None:
    """The shortest such name, as detectron2 saves it: `torch.optim.AdamW`, independent of torch's layout."""
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


def parameters(target: Any) -> dict[str, str]:
    """Names and annotations of the keyword parameters of a target, a callable or a dotted name."""
    try:
        target = locate(target) if isinstance(target, str) else target
        signature = inspect.signature(target)
    except (TypeError, ValueError, ImportError, UserError):
        return {}
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name: _annotation(p) for p in signature.parameters.values() if p.kind in by_keyword}
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    if inspect.isclass(target) and passes_on and len(target.__mro__) > 2:
        # The class passes its further keywords to the class that it extends.
        return parameters(target.__mro__[1]) | found
    return found


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def type_error(value: Any, annotation: str) -> str:
    """What a plain value should have been according to an annotation; "" if it is accepted.

    Only annotations made of `bool`, `int`, `float`, `str`, `Path` and `None` are checked.
    """
    names = {name.strip() for name in annotation.split("|")}
    if not re.fullmatch(r"[\w |]+", annotation) or not names <= set(_TYPES):
        return ""
    if value is None or isinstance(value, bool):
        accepted = ("None" if value is None else "bool") in names
    elif isinstance(value, (int, float)):
        accepted = "float" in names or ("int" in names and isinstance(value, int))
    else:
        accepted = isinstance(value, str) and bool(names & {"str", "Path"})
    return "" if accepted else " or ".join(dict.fromkeys(_TYPES[name] for name in sorted(names)))


def needs_component(target: Any, annotation: str) -> bool:
    """Whether a parameter of a target is annotated with classes only, so that no plain value is an argument for it."""
    names = [name.strip() for name in annotation.split("|") if name.strip() != "None"]
    return bool(names) and all(_is_component(target, name) for name in names)


def _is_component(target: Any, name: str) -> bool:
    """Whether a name in the module of a target is a callable type, or a class of this package or of torch's layers."""
    if name.startswith("Callable["):
        return True
    first, *rest = name.split(".")
    for owner in getattr(target, "__mro__", (target,)):
        found = vars(sys.modules[owner.__module__]).get(first)
        for part in rest:
            found = getattr(found, part, None)
        if found is not None:
            is_class = inspect.isclass(found) and within(found.__module__, ("local2global", "torch.nn"))
            return is_class or get_origin(found) is Callable
    return False


_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "Path": "text",
    "None": "null",
}


def within(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or below one."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def nearest(word: str, choices: Sequence[str]) -> str:
    """The text " Did you mean '...'?" with the most similar choice; "" if none is similar."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
