"""Overrides of a config by hydra's grammar; a key that nothing would read is refused with the nearest one."""

from __future__ import annotations

import copy
import difflib
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from .targets import locate, nearest


def _parameters(node: DictConfig) -> list[str]:
    """The parameters that the target of a LazyCall node names in its signature."""
    target = node.get("_target_")
    try:
        target = locate(target) if isinstance(target, str) else target
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError, ImportError):
        return []
    return [each.name for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]


def _names(node: Any) -> list[str]:
    """The keys that may be set in a node: those it has, and unset parameters of its target."""
    if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, "_target_"):
        unset = _parameters(node) if "_target_" in node else []
        return list(dict.fromkeys([*map(str, node.keys()), *unset]))
    return [str(i) for i in range(len(node))] if isinstance(node, ListConfig) else []


def _child(node: Any, name: str) -> Any:
    """The node's value of that name; None where it has none of its own."""
    if isinstance(node, ListConfig):
        return node[int(name)] if name in _names(node) else None
    if not isinstance(node, DictConfig) or name not in node.keys():  # noqa: SIM118 - `in` looks through interpolations
        return None
    return None if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name) else node[name]


def _parent(cfg: DictConfig, key: str) -> tuple[Any, str]:
    *path, last = key.split(".")
    node: Any = cfg
    for name in path:
        node = _child(node, name)
    return node, last


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name in _names(node):
        if name != "_target_" and not isinstance(node, ListConfig):
            yield prefix + name
        yield from _all_keys(_child(node, name), f"{prefix}{name}.")


def _nearest_key(cfg: DictConfig, key: str) -> str:
    """The key most like `key`: by the whole name, by the last part (also abbreviated), and by its parents."""
    *parents, last = key.split(".")

    def likeness(candidate: str) -> tuple[float, float]:
        *above, end = candidate.split(".")
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        tail = difflib.SequenceMatcher(None, last, end).ratio()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(last, end, strict=False))
        shared = len(list(same)) / max(len(last), 1)
        kin = sum(parent in above for parent in parents) / max(len(parents), 1)
        return max(whole, tail), whole + max(tail, shared) + kin

    scored = [(likeness(candidate), candidate) for candidate in _all_keys(cfg)]
    near = [(score, candidate) for (best, score), candidate in scored if best > 0.5]
    return f" Did you mean '{max(near)[1]}'?" if near else " A new key is added with '+' before it."


def _check_key(cfg: DictConfig, key: str, value: Any) -> None:
    """Refuses an override that nothing would read.

    Raises:
        UserError: with the nearest existing key.
    """
    node, name = _parent(cfg, key)
    if name not in _names(node):
        raise UserError(f"no key '{key}'.{_nearest_key(cfg, key)}")
    if isinstance(value, Mapping) and "_target_" not in value and isinstance(_child(node, name), DictConfig):
        for inner, each in value.items():
            _check_key(cfg, f"{key}.{inner}", each)


def _check_room(cfg: DictConfig, key: str) -> None:
    """Refuses a new key under a value that cannot hold keys."""
    node: Any = cfg
    parts = key.split(".")
    for depth, name in enumerate(parts[:-1], start=1):
        if name not in _names(node):
            return
        prefix = ".".join(parts[:depth])
        if isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name):
            raise UserError(f"no room for '{key}': '{prefix}' takes its value from elsewhere in the config")
        node = _child(node, name)
        if node is not None and not OmegaConf.is_config(node):
            raise UserError(
                f"no room for '{key}': '{prefix}' is a {type(node).__name__}, not a group of keys"
            )


def apply_overrides(
    cfg: DictConfig, overrides: Sequence[str], variants: Mapping[str, Mapping[str, Any]] | None = None
) -> DictConfig:
    """Changes a config in place by hydra's override grammar and returns it.

    Args:
        cfg: the config.
        overrides: `key=value` for a key that exists or is a parameter of the node's target, `+key=value` for
            any other, `++key=value` for either, `~key` to remove one.
        variants: what a word stands for, by key: it replaces the value whole.

    Raises:
        UserError: an override cannot be read, or its key does not exist; the message names the nearest one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in overrides:
        try:
            [override] = parser.parse_overrides([text])
        except HydraException as error:
            reason = " ".join(str(error).splitlines()[1:2])
            raise UserError(f"'{text}' is not an override such as key=value: {reason}") from error
        if override.is_sweep_override() or override.package is not None:
            raise UserError(f"'{text}' sets more than one value; a list is written key=[1,2]")
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            _delete(cfg, key, value)
            continue
        added = override.is_add() or override.is_force_add()
        if added:
            _check_room(cfg, key)
        else:
            _check_key(cfg, key, value)
        variant = _variant(cfg, key, value, variants or {})
        try:
            if variant is not None:
                OmegaConf.update(cfg, key, variant, merge=False, force_add=added)
            else:
                OmegaConf.update(cfg, key, value, merge=True, force_add=added)
        except OmegaConfBaseException as error:
            raise UserError(f"'{text}': {str(error).splitlines()[0]}") from error
    return cfg


def _variant(
    cfg: DictConfig, key: str, value: Any, variants: Mapping[str, Mapping[str, Any]]
) -> DictConfig | None:
    """What the word `value` stands for; None where it is a value itself.

    Raises:
        UserError: a word for a group of keys, and no variant has that name.
    """
    if not isinstance(value, str) or "${" in value:
        return None
    known = variants[key] if key in variants else {}  # noqa: SIM401 - a DictConfig would read the dots as a path
    if value in known:
        chosen: DictConfig = copy.deepcopy(known[value])
        return chosen
    if known:
        raise UserError(f"no variant '{value}' of '{key}'.{nearest(value, list(known)) or _listed(known)}")
    node, name = _parent(cfg, key)
    if isinstance(_child(node, name), DictConfig):
        raise UserError(
            f"'{key}={value}': '{key}' is a group of keys and has no variants by name; set its keys"
        )
    return None


def _listed(names: Iterable[str]) -> str:
    return f" There are: {', '.join(names)}."


def _delete(cfg: DictConfig, key: str, value: Any) -> None:
    node, name = _parent(cfg, key)
    keys = node.keys() if isinstance(node, DictConfig) else _names(node)
    if name not in keys:
        raise UserError(f"no key '{key}'.{_nearest_key(cfg, key)}")
    if value is not None and _child(node, name) != value:
        raise UserError(f"'~{key}': its value is {_child(node, name)!r}, not {value!r}")
    del node[int(name) if isinstance(node, ListConfig) else name]
