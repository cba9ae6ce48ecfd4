"""config.yaml of a run: its config as plain values, and what a stranger's may build when it is read again."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from .targets import FLAGS, current_name, locate, nearest, target_name, within

_UNSAVED = "_unsaved_"

#: Largest number of nodes of a yaml file after expanding its aliases.
MAX_NODES = 200_000

# What a config.yaml from a stranger may build: the parts of a model and of its run, and classes of libraries.
# Not all of torch: it can download code (`torch.hub.load`) and run a shell (`torch.utils.collect_env.run`).
_OURS = tuple(
    f"local2global.{room}" for room in ("modeling", "data", "evaluation", "results", "engine.optim")
)
_CLASSES = ("torch.nn", "torch.optim", "fvcore.common.param_scheduler")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all."""
    unfinished = Path(f"{os.fspath(path)}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a yaml file: plain values only.

    Raises:
        UserError: if the file cannot be read, is not yaml, has unknown tags, or its aliases expand to more than
            `MAX_NODES` nodes.
    """
    path = os.fspath(path)
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > MAX_NODES:
            raise UserError(f"{path}: its yaml aliases expand to more than {MAX_NODES} nodes")
        return loader.construct_document(node)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not yaml: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Number of nodes after expanding aliases; an alias of a node inside itself counts as infinitely many."""
    if id(node) not in counts:
        counts[id(node)] = MAX_NODES + 1  # while its children are being counted
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each, str(name)) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    name = target_name(value) if key == "_target_" else None
    return name or {_UNSAVED: f"{type(value).__name__} {value!r:.80}"}


def resolve(cfg: Any) -> Any:
    """The config as plain dicts, lists, strings and numbers: interpolations worked out, targets as names.

    What has no such form (a lambda as a target, a class or an object as a value) is noted as
    `{_unsaved_: what it was}`, which `load_resolved` refuses.

    Raises:
        UserError: an interpolation leads nowhere.
    """
    try:
        return _plain(OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error


def save_resolved(cfg: Any, path: str | os.PathLike[str]) -> None:
    """Writes `resolve(cfg)` as yaml, whole or not at all."""
    write_text(path, yaml.safe_dump(resolve(cfg), sort_keys=False, allow_unicode=True))


def load_resolved(path: str | os.PathLike[str], only: Sequence[str] = ()) -> DictConfig:
    """A config that `save_resolved` wrote, ready for `instantiate`.

    It may come from a stranger, beside weights: it may build parts of this package, and modules, optimisers
    and schedules of torch and fvcore; nothing else.

    Args:
        path: the yaml file.
        only: names to load, such as `("model",)`; the rest, which may need what is not here, is then ignored.

    Raises:
        UserError: the file cannot be read, or names a target that is not trusted.
    """
    path = os.fspath(path)
    loaded = read_yaml(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a config: a mapping is expected")
    content: dict[Any, Any] = {}
    for name in only or loaded:
        if name not in loaded:
            raise UserError(f"{path}: no '{name}' in it.{nearest(name, list(map(str, loaded)))}")
        _check_trusted(loaded[name], f"{path}: {name}")
        content[name] = loaded[name]
    return DictConfig(content, flags=FLAGS)


def _check_trusted(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        if _UNSAVED in value:
            raise UserError(f"{where}: could not be saved ({value[_UNSAVED]}). Use the original config file")
        if "_target_" in value:
            _check_target(value["_target_"], where)
        for name, each in value.items():
            _check_trusted(each, f"{where}.{name}")
    elif isinstance(value, list):
        for i, each in enumerate(value):
            _check_trusted(each, f"{where}[{i}]")
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{where}: '{value}' is not a resolved value")


def _check_target(name: Any, where: str) -> None:
    """By name before anything is imported, then by where it is defined: `torch.nn.os.system` is not torch."""
    if isinstance(name, str) and within(current_name(name), (*_OURS, *_CLASSES)):
        target = locate(name)
        home = str(getattr(target, "__module__", ""))
        if within(home, _OURS) or (inspect.isclass(target) and within(home, _CLASSES)):
            return
    raise UserError(f"{where}: a shared config may not build '{name}'. Use the original config file")
