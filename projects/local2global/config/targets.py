"""Targets of a config: callables by dotted name, and the arguments they accept."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import UserError

#: Flags that detectron2 sets on every config node: values may be any objects.
FLAGS = {"allow_objects": True}

#: Bound of whole numbers: torch reads seeds and sizes as 64-bit integers.
MAX_INTEGER = 1 << 62

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
    "modeling.variants.OlderSlotsFirst": "modeling.variants.RememberingTracker",
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


def parameters(target: Any) -> dict[str, Any]:
    """Names and types of the keyword parameters of a target, a callable or a dotted name; `Any` for an unknown type."""
    try:
        target = locate(target) if isinstance(target, str) else target
        signature = inspect.signature(target)
    except (TypeError, ValueError, ImportError, UserError):
        return {}
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {
        p.name: _evaluated(p.annotation, target)
        for p in signature.parameters.values()
        if p.kind in by_keyword
    }
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    if inspect.isclass(target) and passes_on and len(target.__mro__) > 2:
        # The class passes its further keywords to the class that it extends.
        return parameters(target.__mro__[1]) | found
    return found


def _evaluated(annotation: Any, target: Any) -> Any:
    """The type that an annotation of a target names; `Any` if there is none."""
    # A dataclass has parameters of the class that it extends, perhaps of another module.
    for owner in getattr(target, "__mro__", (target,)):
        module = sys.modules.get(getattr(owner, "__module__", ""))
        if isinstance(annotation, str) and module is not None:
            with suppress(NameError, AttributeError, TypeError, SyntaxError):
                annotation = eval(annotation, vars(module))
    return Any if isinstance(annotation, str) or annotation is inspect.Parameter.empty else annotation


# --- Types of arguments ---


def check_arguments(value: Any, where: str) -> None:
    """Check the arguments of all components below a config key against the parameters of their targets.

    Args:
        value: plain dicts, lists and values.  Interpolations are accepted: resolve them first to check their values.
        where: the key, for messages.

    Raises:
        UserError: for an unknown argument, or one of the wrong type.
    """
    if isinstance(value, list):
        for i, item in enumerate(value):
            check_arguments(item, f"{where}[{i}]")
    elif isinstance(value, dict):
        types = parameters(value["_target_"]) if "_target_" in value else {}
        if "_target_" in value:
            _check_names(value, where)
        for name, item in value.items():
            key = f"{where}.{name}" if where else str(name)
            if expected := type_error(item, types.get(name, Any)):
                raise UserError(f"{key}={shown(item)}: expected {expected}")
            check_arguments(item, key)


def _check_names(node: dict[Any, Any], where: str) -> None:
    """Refuse an argument that the target of a component does not have."""
    target = node["_target_"]
    try:
        target = locate(target) if isinstance(target, str) else target
        known = inspect.signature(target).parameters
    except (TypeError, ValueError, ImportError):
        return  # reported where the component is built
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name in () if takes_any else node:
        if name != "_target_" and name not in known:
            owner = getattr(target, "__qualname__", target)
            raise UserError(f"{where}: {owner} has no parameter '{name}'.{nearest(str(name), list(known))}")


def type_error(value: Any, kind: Any) -> str:
    """What a config value should have been as an argument of a type; "" if it is accepted.

    Checked are plain types, `Literal`, lists, mappings, callables, and classes of `_is_part`.
    Other types accept everything.  Interpolations, missing values (???) and objects are accepted for every type.
    """
    if get_origin(kind) in (Union, UnionType):
        errors = [type_error(value, choice) for choice in get_args(kind)]
        return "" if "" in errors else " or ".join(dict.fromkeys(errors))
    if isinstance(value, str) and ("${" in value or value == "???"):
        return ""
    if isinstance(value, dict) and "_target_" in value:
        return _component_error(value["_target_"], kind)
    if not isinstance(value, (bool, int, float, str, list, tuple, dict, NoneType)):
        return ""
    return _plain_error(value, kind)


def _plain_error(value: Any, kind: Any) -> str:
    """`type_error` of a value that is no component, for a type that is no union."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "" if value in inner else f"one of {', '.join(map(str, inner))}"
    if inner and origin in (list, tuple, Sequence, Collection):
        return _list_error(value, inner if origin is tuple and Ellipsis not in inner else inner[:1])
    if inner and origin in (dict, Mapping):
        if not isinstance(value, dict):
            return "a mapping"
        errors = (type_error(item, inner[1]) for item in value.values())
        return next((f"a mapping whose values are each {error}" for error in errors if error), "")
    if kind not in _PLAIN:
        return "a component with a _target_" if origin is Callable or _is_part(kind) else ""
    accepted, words = _PLAIN[kind]
    is_valid = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if is_valid and isinstance(value, int) and abs(value) >= MAX_INTEGER:
        return "a smaller number"
    return "" if is_valid and value == value and "\0" not in str(value) else words


def _list_error(value: Any, inner: Sequence[Any]) -> str:
    """`type_error` for a list: of elements of one type, or with a type for each element."""
    if not isinstance(value, (list, tuple)):
        return "a list such as [1,2]"
    if len(inner) not in (1, len(value)):
        return f"a list of {len(inner)} values"
    errors = (type_error(item, inner[i if len(inner) > 1 else 0]) for i, item in enumerate(value))
    return next((f"a list whose values are each {error}" for error in errors if error), "")


def _component_error(target: Any, kind: Any) -> str:
    """`type_error` of a component; "" if the type of the object that it makes is not known."""
    with suppress(ImportError, UserError):
        target = locate(target) if isinstance(target, str) else target
    returned = getattr(target, "__annotations__", {}).get("return", "")
    made = target if inspect.isclass(target) else _evaluated(returned, target)
    if not _is_part(made):
        return ""
    names = {*dir(made), *getattr(made, "__dataclass_fields__", ())}
    if get_origin(kind) is Callable:
        return "" if "__call__" in names else "a component that can be called"
    if not _is_part(kind):
        return _plain_error(made, kind)
    if getattr(kind, "_is_protocol", False):
        methods = {name for name, member in vars(kind).items() if inspect.isfunction(member)}
        fits = methods - {"__init__", "__subclasshook__"} <= names
    else:
        fits = issubclass(made, kind)
    return "" if fits else f"a component of type {kind.__name__}"


def _is_part(kind: Any) -> bool:
    """Whether a type is a class of this package, of torch's layers or of a schedule."""
    return inspect.isclass(kind) and within(kind.__module__, ("local2global", "torch.nn", "fvcore"))


def shown(value: Any) -> str:
    """A value for a message: one line, at most 100 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


#: Values that are accepted for plain types, and what messages call them.
_PLAIN: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
    Path: (str, "text"),
    NoneType: (NoneType, "null"),
}


def within(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or below one."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def nearest(word: str, choices: Sequence[str]) -> str:
    """The text " Did you mean '...'?" with the most similar choice; "" if none is similar."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
