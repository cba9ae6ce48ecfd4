"""Config overrides in hydra's grammar; unknown keys and values of the wrong type are errors."""

from __future__ import annotations

import copy
import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError, first_line
from .targets import check_arguments, nearest, parameters, shown, type_error

Variants = Mapping[str, Mapping[str, Any]]


def apply_overrides(
    cfg: DictConfig, overrides: Sequence[str], variants: Variants | None = None
) -> DictConfig:
    """Change a config in place and return it.

    Args:
        cfg: the config.
        overrides: `key=value` for an existing key or a parameter of the node's target, `+key=value` for any other key,
            `++key=value` for either, `~key` to remove a key.  Where a key holds text, an unquoted value is taken
            literally, such as a path with `=` or brackets.
        variants: by key, words that select a whole config node, such as `model.tracker=bypass`.

    Raises:
        UserError: if an override cannot be parsed, its key does not exist (the message suggests the most similar key),
            or its value has the wrong type.
    """
    for text in overrides:
        literal = _literal(cfg, text)
        key, value, action = (*literal, "") if literal else _parse(text)
        if action == "delete":
            _delete(cfg, key, value)
            continue
        if action == "add":
            _check_parents(cfg, key)
        else:
            _check_key(cfg, key, value)
        variant = _variant(cfg, key, value, variants or {})
        if variant is None and action != "add":
            _check_type(cfg, key, value)
        try:
            if variant is not None:
                OmegaConf.update(cfg, key, variant, merge=False, force_add=action == "add")
            else:
                OmegaConf.update(cfg, key, value, merge=True, force_add=action == "add")
        except (
            OmegaConfBaseException,
            ValueError,
        ) as error:  # a ValueError for a key of a list that is no number
            raise UserError(f"'{text}': {first_line(error)}") from error
    if overrides:
        check_arguments(OmegaConf.to_container(cfg, structured_config_mode=SCMode.DICT_CONFIG), "")
    return cfg


# --- Parsing ---


def _literal(cfg: DictConfig, text: str) -> tuple[str, str] | None:
    """Key and literal value of `key=value`, if the key holds text and the value is not in yaml syntax.

    A value in yaml syntax is null, quoted, a list, a mapping or an interpolation.
    """
    match = re.fullmatch(r"([\w.]+)=(.*)", text, re.DOTALL)
    if match is None or match[2] == "null" or re.match(r"['\"\[{]|\$\{", match[2]):
        return None
    node, name = _parent(cfg, match[1])
    if name not in _names(node) or isinstance(_child(node, name), (DictConfig, ListConfig)):
        return None
    try:
        is_text = isinstance(OmegaConf.select(cfg, match[1]), str)
    except (OmegaConfBaseException, UserError):
        return None
    if not is_text:
        return None
    value = match[2]
    return match[1], os.path.expanduser(value) if value.startswith("~/") else value


def _parse(text: str) -> tuple[str, Any, str]:
    """Key, value and action ("", "add" or "delete") of an override in hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        [override] = OverridesParser.create().parse_overrides([text])
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"'{shown(text)}' is not an override: {str(error).split(';')[0]}") from error
    except HydraException as error:
        reason = " ".join(str(error).splitlines()[1:2])
        reason = "" if set(reason) <= set(" ^") or "http" in reason else f": {reason}"
        raise UserError(
            f"'{shown(text)}' is not an override such as key=value{reason}. "
            "Quote a value with special characters: key='\"value\"'."
        ) from error
    if override.is_sweep_override() or override.package is not None:
        raise UserError(f"'{text}' sets more than one value; a list is written key=[1,2]")
    added = override.is_add() or override.is_force_add()
    action = "delete" if override.is_delete() else "add" if added else ""
    return override.key_or_group, override.value(), action


# --- Config nodes ---


def _names(node: Any) -> list[str]:
    """The keys that may be set in a node: existing keys, and parameters of its target."""
    if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, "_target_"):
        unset = parameters(node.get("_target_")) if "_target_" in node else {}
        return list(dict.fromkeys([*map(str, node.keys()), *unset]))
    return [str(i) for i in range(len(node))] if isinstance(node, ListConfig) else []


def _child(node: Any, name: str) -> Any:
    """The value of a key; None if the key is absent, missing or an interpolation."""
    if isinstance(node, ListConfig):
        return node[int(name)] if name in _names(node) else None
    if not isinstance(node, DictConfig) or name not in node.keys():  # noqa: SIM118 - `in` resolves interpolations
        return None
    return None if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name) else node[name]


def _parent(cfg: DictConfig, key: str) -> tuple[Any, str]:
    """The node that holds a dotted key, and the key's last part."""
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


# --- Checks ---


def _check_key(cfg: DictConfig, key: str, value: Any) -> None:
    """Refuse a key that does not exist, also inside a mapping."""
    node, name = _parent(cfg, key)
    if name not in _names(node):
        raise UserError(f"no key '{key}'.{_nearest_key(cfg, key)}")
    if isinstance(value, Mapping) and "_target_" not in value and isinstance(_child(node, name), DictConfig):
        for inner, item in value.items():
            _check_key(cfg, f"{key}.{inner}", item)


def _check_type(cfg: DictConfig, key: str, value: Any) -> None:
    """Refuse a value of another type than the present one, or than the target's annotation."""
    node, name = _parent(cfg, key)
    present = _child(node, name)
    if isinstance(value, Mapping):
        for inner, item in value.items() if isinstance(present, DictConfig) else ():
            _check_type(cfg, f"{key}.{inner}", item)
        return
    if value is None or "${" in str(value):
        return
    target = node.get("_target_") if isinstance(node, DictConfig) and "_target_" in node else None
    kind = parameters(target).get(name, Any) if target is not None else Any
    if kind is Any and isinstance(present, (bool, int, float, str, ListConfig)):
        kind = {int: float, ListConfig: list[Any]}.get(type(present), type(present))
    if expected := type_error(value, kind):
        raise UserError(f"{key}={shown(value)}: expected {expected}")


def _check_parents(cfg: DictConfig, key: str) -> None:
    """Refuse a new key below a value that holds no keys."""
    node: Any = cfg
    parts = key.split(".")
    for depth, name in enumerate(parts[:-1], start=1):
        if name not in _names(node):
            return
        prefix = ".".join(parts[:depth])
        if isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name):
            raise UserError(f"cannot add '{key}': '{prefix}' refers to another key of the config")
        node = _child(node, name)
        if node is not None and not OmegaConf.is_config(node):
            raise UserError(f"cannot add '{key}': '{prefix}' is a {type(node).__name__}, not a group of keys")


def _nearest_key(cfg: DictConfig, key: str) -> str:
    """Suggest the most similar key: by the whole name, by the last part (also abbreviated), and by its parents."""
    *parents, last = key.split(".")

    def similarity(candidate: str) -> tuple[float, float]:
        *above, end = candidate.split(".")
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        tail = difflib.SequenceMatcher(None, last, end).ratio()
        prefix = list(itertools.takewhile(lambda ab: ab[0] == ab[1], zip(last, end, strict=False)))
        shared = len(prefix) / max(len(last), 1)
        common = sum(parent in above for parent in parents) / max(len(parents), 1)
        return max(whole, tail), whole + max(tail, shared) + common

    scored = [(similarity(candidate), candidate) for candidate in _all_keys(cfg)]
    similar = [(score, candidate) for (best, score), candidate in scored if best > 0.5]
    return f" Did you mean '{max(similar)[1]}'?" if similar else " A new key is added with '+' before it."


# --- Variants and deletion ---


def _variant(cfg: DictConfig, key: str, value: Any, variants: Variants) -> DictConfig | None:
    """The config node that the word `value` selects; None if it is a plain value.

    Raises:
        UserError: if the key is a group of keys and the word names no variant.
    """
    if not isinstance(value, str) or "${" in value:
        return None
    known = variants[key] if key in variants else {}  # noqa: SIM401 - DictConfig.get reads the dots as a path
    if value in known:
        chosen: DictConfig = copy.deepcopy(known[value])
        return chosen
    if known:
        hint = nearest(value, list(known)) or f" The variants are: {', '.join(known)}."
        raise UserError(f"no variant '{value}' of '{key}'.{hint}")
    node, name = _parent(cfg, key)
    if isinstance(_child(node, name), DictConfig):
        raise UserError(f"'{key}={value}': '{key}' is a group of keys without named variants; set its keys")
    return None


def _delete(cfg: DictConfig, key: str, value: Any) -> None:
    node, name = _parent(cfg, key)
    keys = node.keys() if isinstance(node, DictConfig) else _names(node)
    if name not in keys:
        raise UserError(f"no key '{key}'.{_nearest_key(cfg, key)}")
    if value is not None and _child(node, name) != value:
        raise UserError(f"'~{key}': its value is {shown(repr(_child(node, name)))}, not {shown(repr(value))}")
    del node[int(name) if isinstance(node, ListConfig) else name]
