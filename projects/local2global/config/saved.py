"""The config.yaml of a run: a config as plain values, and safe reading of yaml files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError, first_line, wrapped_user_error
from ..files import write_text
from .targets import FLAGS, check_arguments, nearest, shown, target_name
from .trusted import UNSAVED, check_trusted

#: Largest size of a yaml file in bytes, and largest number of nodes after expanding its aliases.
MAX_BYTES = 4_000_000
MAX_NODES = 50_000
#: Largest depth; a shipped config has about ten levels.
MAX_DEPTH = 50


def resolve(cfg: Any) -> Any:
    """The config as plain dicts, lists, strings and numbers, with interpolations resolved and targets as names.

    A value without such a form (a lambda as target, an object as value) becomes `{_unsaved_: description}`, which
    `load_resolved` refuses.

    Raises:
        UserError: if an interpolation cannot be resolved.
    """
    try:
        return _plain(OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg)
    except OmegaConfBaseException as error:
        raise wrapped_user_error(error) or UserError(first_line(error)) from error


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    name = target_name(value) if key == "_target_" else None
    return name or {UNSAVED: f"{type(value).__name__} {value!r:.80}"}


def save_resolved(cfg: Any, path: str | os.PathLike[str]) -> None:
    """Write `resolve(cfg)` as yaml, atomically."""
    write_text(path, yaml.safe_dump(resolve(cfg), sort_keys=False, allow_unicode=True))


def load_resolved(path: str | os.PathLike[str], only: Sequence[str] = ()) -> DictConfig:
    """Load a config that `save_resolved` wrote, ready for `instantiate`.

    The file may come from a stranger; `trusted.py` lists what it may build.

    Args:
        path: the yaml file.
        only: keys to load, such as `("model",)`; other keys are not checked.

    Raises:
        UserError: if the file cannot be read, names another target, or has an interpolation.
    """
    content = _load_trusted(path, only)
    _check_interpolations(content, os.fspath(path), r"\$\{", "is not a resolved value")
    return DictConfig(content, flags=FLAGS)


def load_yaml_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Load a yaml config, which may interpolate its own keys but call no resolver except `len`.

    The evaluator's folder follows `train.output_dir` if it lies inside.  Output folders lie below the working directory
    or the file's own folder, unless an override selects them.

    Args:
        path: the yaml file.
        overrides: the overrides of the command, which are trusted; they are not applied here.

    Raises:
        UserError: if the file cannot be read, names a target that is not trusted, calls another resolver, writes
            outside, downloads weights from an address, or enables wandb.
    """
    content = _load_trusted(path)
    _check_interpolations(content, os.fspath(path), r"\$\{(?!len:)[^{}]*:", "calls a resolver")
    try:
        cfg = DictConfig(content, flags=FLAGS)
    except OmegaConfBaseException as error:  # an interpolation without its end
        raise UserError(f"{path}: {error.full_key}: {first_line(error)}") from error
    overridden = {re.sub(r"^[+~]+|=.*", "", text, flags=re.DOTALL) for text in overrides}
    base = _select(cfg, "train.output_dir")
    folder = _select(cfg, EVALUATOR_FOLDER)
    if isinstance(base, str) and isinstance(folder, str) and f"{folder}/".startswith(f"{base}/"):
        OmegaConf.update(cfg, EVALUATOR_FOLDER, f"${{train.output_dir}}{folder[len(base) :]}")
    for key in ("train.output_dir", EVALUATOR_FOLDER, "train.wandb.params.dir"):
        value = _select(cfg, key)
        follows = key == EVALUATOR_FOLDER and "train.output_dir" in overridden
        if isinstance(value, str) and key not in overridden and not follows and not _is_inside(value, path):
            raise UserError(
                f"{path}: {key}={value}: a yaml config writes below the working directory or its own folder only. "
                f"Add {key}=FOLDER."
            )
    start = _select(cfg, "train.init_checkpoint")
    if isinstance(start, str) and is_remote(start) and "train.init_checkpoint" not in overridden:
        raise UserError(
            f"{path}: train.init_checkpoint={start}: a yaml config downloads nothing but the weights of `l2g weights`. "
            f"Add train.init_checkpoint={start}."
        )
    if _select(cfg, "train.wandb.enabled") and "train.wandb.enabled" not in overridden:
        raise UserError(
            f"{path}: the config enables wandb, which uploads. Add train.wandb.enabled=true or false."
        )
    return cfg


#: The folder of `results.json`.
EVALUATOR_FOLDER = "dataloader.evaluator.output_dir"


def is_remote(weights: str) -> bool:
    """Whether a name of weights that is no path leads to the network: an address, or `OWNER/REPO` of the Hub.

    `folder/name` is a path if the folder exists.
    """
    owner, _, repository = weights.partition("/")
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", weights) and not Path(owner).exists()
    is_file = Path(repository).suffix in (".pth", ".pt", ".pkl", ".safetensors")
    return "://" in weights or bool(is_repository and not is_file)


def _select(cfg: DictConfig, key: str) -> Any:
    """The value of a dotted key; None if it is absent or cannot be resolved."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def _is_inside(folder: str, config: str | os.PathLike[str]) -> bool:
    """Whether a folder lies below the working directory or below the folder of a config file."""
    target = Path(folder).expanduser().resolve()
    return any(target.is_relative_to(root.resolve()) for root in (Path(), Path(config).parent))


def _load_trusted(path: str | os.PathLike[str], only: Sequence[str] = ()) -> dict[Any, Any]:
    path = os.fspath(path)
    loaded = read_yaml(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a config: expected a mapping")
    for name in only or loaded:
        if name not in loaded:
            raise UserError(f"{path}: no '{name}' in it.{nearest(name, list(map(str, loaded)))}")
        check_trusted(loaded[name], f"{path}: {name}", is_model=name == "model")
        check_arguments(loaded[name], f"{path}: {name}")
    return {name: loaded[name] for name in only or loaded}


def _check_interpolations(value: Any, where: str, pattern: str, problem: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_interpolations(
                item, f"{where}: {name}" if ": " not in where else f"{where}.{name}", pattern, problem
            )
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_interpolations(item, f"{where}[{i}]", pattern, problem)
    elif isinstance(value, str) and re.search(pattern, value):
        raise UserError(f"{where}: '{value}' {problem}")


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a yaml file of plain values.

    Raises:
        UserError: if the file cannot be read, is not yaml, has tags of Python objects, values of `_oddity`, or is
            larger than `MAX_BYTES` or `MAX_NODES`.
    """
    path = os.fspath(path)
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes, which is no config")
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        counts: dict[yaml.Node, int] = {}
        if _count_nodes(node, counts) > MAX_NODES:
            raise UserError(f"{path}: more than {MAX_NODES} values, or aliases that expand to as many")
        for each in counts:
            if problem := _oddity(each):
                raise UserError(f"{path}:{each.start_mark.line + 1}: {problem}")
        content = loader.construct_document(node)
        _check_depth(content)
        return content
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text, numbers of thousands of digits
        raise UserError(f"{path}: not yaml: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error


#: Types of yaml that no setting has.
_ODD_TYPES = ("binary", "omap", "pairs", "set", "timestamp")


def _oddity(node: yaml.Node) -> str:
    """What is read as something else than it looks like, or replaces another key; "" for other nodes.

    YAML 1.1 reads `010` as 8, `1:30` as 90, and `2020-01-01` as a date.
    """
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            return f"'{shown(twice[0])}' is set more than once in one mapping"
    elif kind in ("int", "float") and re.match(r"[-+]?0[0-9_]|.*:", node.value):
        return f"'{shown(node.value)}' is a number of base 8 or 60 in yaml: write it in decimal, or quote it"
    return f"a {kind} of yaml is no setting: quote text" if kind in _ODD_TYPES else ""


def _check_depth(value: Any, left: int = MAX_DEPTH) -> None:
    if left == 0:
        raise RecursionError
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(child, left - 1)


def _count_nodes(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Number of nodes after expanding aliases; above `MAX_NODES` if a node contains itself."""
    if node not in counts:
        counts[node] = MAX_NODES + 1  # applies while the children are being counted
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for item in node.value for child in item]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        counts[node] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[node]
