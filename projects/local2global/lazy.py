"""LazyConfig: detectron2's implementation if it is installed, otherwise an equivalent one.

A config is a Python file whose dictionaries describe objects: `LazyCall(target)(**arguments)` records a call and
`instantiate` makes it.  The environment variable `L2G_STANDALONE=1` disables an installed detectron2.
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import importlib.util
import itertools
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from .config.overrides import apply_overrides
from .config.saved import load_resolved, load_yaml_config, resolve, save_resolved
from .config.targets import FLAGS, locate, nearest, short_name, target_name
from .configs import FOLDER
from .errors import UserError, first_line
from .files import write_text

__all__ = [
    "LazyCall",
    "LazyConfig",
    "OwnLazyCall",
    "OwnLazyConfig",
    "apply_overrides",
    "instantiate",
    "load_config",
    "load_resolved",
    "locate",
    "own_instantiate",
    "resolve",
    "save_resolved",
    "variants_of",
]

_MODULE = "local2global_config"
CONFIGS = f"{__package__}.configs"  # the package of the shipped configs
_CONFIG_MODULES = (_MODULE, "detectron2._cfg_loader")

# A config states its class list once: `num_classes="${len:${..classes}}"`.
OmegaConf.register_new_resolver("len", len, replace=True)


# --- LazyCall, instantiate and LazyConfig without detectron2 ---


class OwnLazyCall:
    """`OwnLazyCall(target)(**arguments)` is a config node that describes the call without making it."""

    def __init__(self, target: Callable[..., Any] | str | Mapping[Any, Any]) -> None:
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall takes a callable, its name or a config of a callable, got {target!r}")
        # omegaconf treats a dataclass as a schema, so a dataclass is stored by name.
        self._target = target_name(target) if dataclasses.is_dataclass(target) else target

    def __call__(self, **arguments: Any) -> DictConfig:
        """The config node: the arguments and `_target_`."""
        content: dict[Any, Any] = {**arguments, "_target_": self._target}
        return DictConfig(content, flags=FLAGS)


def own_instantiate(cfg: Any) -> Any:
    """Make the calls that a config describes, innermost first and also in lists; other values are unchanged.

    Raises:
        UserError: if a value is missing ("???") or a target does not exist.
        TypeError: if a target rejects its arguments; the message names the config key.
    """
    if isinstance(cfg, (ListConfig, list)):
        return [own_instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(cfg)):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg
    try:
        arguments = {name: own_instantiate(value) for name, value in cfg.items()}
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: required value is missing (???)") from error
    target = arguments.pop("_target_")
    if isinstance(target, str):
        target = locate(target)
    try:
        return target(**arguments)
    except TypeError as error:
        key = cfg._get_full_key(None) if isinstance(cfg, DictConfig) else ""
        raise TypeError(f"{key or 'config'}: {getattr(target, '__qualname__', target)}: {error}") from error


def _as_config(value: Any) -> Any:
    return DictConfig(value, flags=FLAGS) if isinstance(value, dict) else value


def _import_relative(
    path: str, chain: tuple[str, ...], name: str, names: Sequence[str], level: int
) -> ModuleType:
    """`from ..folder.file import names` in a config: runs the file again and converts dicts to DictConfigs.

    With level 0, the name is relative to the shipped configs.
    """
    if not name or not names or "*" in names:
        raise ImportError(
            "star and package imports are not supported in configs: use `from .file import name`"
        )
    folder = os.path.join(os.path.dirname(path), *[os.pardir] * (level - 1)) if level else str(FOLDER)
    file = os.path.normpath(os.path.join(folder, *name.split(".")) + ".py")
    if not os.path.isfile(file):
        if os.path.isdir(file.removesuffix(".py")):
            shown = f"{'.' * level or f'{CONFIGS}.'}{name}"
            raise ImportError(f"{shown} is a folder of configs: use `from {shown}.FILE import name`")
        raise ImportError(f"{file}: no such file.{_nearest_file(file)}")
    module = _run(file, chain)
    for imported in names:
        if not hasattr(module, imported):
            raise ImportError(f"{file}: no '{imported}' in it.{nearest(imported, list(vars(module)))}")
        setattr(module, imported, _as_config(getattr(module, imported)))
    return module


def _run(path: str, chain: tuple[str, ...] = ()) -> ModuleType:
    """Run a config file in a new namespace.

    Its `__import__` resolves relative imports by path.  The interpreter's import system is not patched, and nothing is
    cached.
    """
    here = os.path.realpath(path)
    if here in chain:
        raise ImportError(f"{path}: imports itself through {', '.join(map(os.path.basename, chain))}")
    module = ModuleType(f"{_MODULE}.{Path(path).stem}")

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level:
            return _import_relative(path, (*chain, here), name, fromlist or (), level)
        if name.startswith(f"{CONFIGS}."):
            shipped = name.removeprefix(f"{CONFIGS}.")
            return _import_relative(path, (*chain, here), shipped, fromlist or (), 0)
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    vars(module).update(__file__=path, __builtins__={**vars(builtins), "__import__": import_})
    exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), vars(module))
    return module


class _YamlLoader(yaml.FullLoader):  # type: ignore[misc, unused-ignore]
    """Plain yaml, tuples, and names of classes and functions as detectron2 writes them; creates no objects."""


_YamlLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: locate(name))


class OwnLazyConfig:
    """Loads, saves and overrides configs like detectron2's `LazyConfig`."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config file, .py or .yaml.

        Args:
            filename: its path.
            keys: names to return; by default one DictConfig of all dicts, DictConfigs and ListConfigs whose names do
                not start with an underscore.
        """
        filename = os.fspath(filename)
        suffix = os.path.splitext(filename)[1]
        if suffix not in {".py", ".yaml", ".yml"}:
            raise ValueError(f"{filename}: a config is a .py or .yaml file")
        if suffix == ".py":
            loaded: Any = vars(_run(filename))
        else:
            with open(filename, encoding="utf-8") as file:
                loaded = OmegaConf.create(yaml.load(file, _YamlLoader) or {}, flags=FLAGS)
        if isinstance(keys, str):
            return _as_config(loaded[keys])
        if keys is not None:
            return tuple(_as_config(loaded[key]) for key in keys)
        if suffix != ".py":
            return loaded
        found = {
            name: _as_config(value)
            for name, value in loaded.items()
            if not name.startswith("_") and isinstance(value, (dict, DictConfig, ListConfig))
        }
        return DictConfig(found, flags=FLAGS)

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a path relative to the calling file."""
        caller = sys._getframe(1).f_code.co_filename
        return OwnLazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write yaml with interpolations; a value that yaml cannot hold becomes its `repr`, with a warning."""
        content = _saveable(OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg, "")
        write_text(filename, yaml.dump(content, default_flow_style=None, allow_unicode=True, width=9999))

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """See `apply_overrides`."""
        return apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """The config as readable Python-like lines, one value or call per line."""
        return "\n".join(_lines(OmegaConf.to_container(cfg, resolve=True), prefix.rstrip(".")))


def _lines(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" not in value:
        for key, item in value.items():
            yield from _lines(item, f"{name}.{key}" if name else str(key))
    else:
        yield f"{name} = {_expression(value)}"


def _expression(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        target = value["_target_"]
        name = target if isinstance(target, str) else target_name(target) or repr(target)
        inner = (f"{key}={_expression(item)}" for key, item in value.items() if key != "_target_")
        return f"{name}({', '.join(inner)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expression(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_expression, value)) + "]"
    return repr(value)


def _saveable(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _saveable(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_saveable(item, f"{key}[{i}]") for i, item in enumerate(value))
    if key.rpartition(".")[2] == "_target_" and (name := short_name(value)):
        return name
    try:
        yaml.dump(value)
    except (TypeError, AttributeError, pickle.PicklingError, yaml.YAMLError) as error:
        warnings.warn(f"{key}: saved as text, which cannot be loaded again ({error})", stacklevel=3)
        return repr(value)
    return value


# --- Choice of the implementation ---


def _choose() -> tuple[type[OwnLazyCall], type[OwnLazyConfig], Callable[[Any], Any]]:
    """The implementations of detectron2 if it can be imported, otherwise ours.  Both validate overrides."""
    if os.environ.get("L2G_STANDALONE") or importlib.util.find_spec("detectron2") is None:
        return OwnLazyCall, OwnLazyConfig, own_instantiate
    try:
        from detectron2.config import LazyCall, LazyConfig, instantiate
    except ImportError as error:
        warnings.warn(f"detectron2 cannot be imported ({error}); using the built-in LazyConfig", stacklevel=3)
        return OwnLazyCall, OwnLazyConfig, own_instantiate
    checked = type("LazyConfig", (LazyConfig,), {"apply_overrides": staticmethod(apply_overrides)})
    return LazyCall, checked, instantiate


LazyCall, LazyConfig, instantiate = _choose()


# --- Functions for commands ---


def _nearest_file(path: str) -> str:
    folder = Path(path).parent
    while not folder.is_dir():
        folder = folder.parent
    near = itertools.chain.from_iterable(
        folder.glob(pattern) for pattern in ("[!.]*", "[!.]*/*", "[!.]*/*/*")
    )
    files = [str(file) for file in itertools.islice(near, 5000) if file.suffix in {".py", ".yaml", ".yml"}]
    return nearest(os.path.normpath(path), files)


def _where(error: BaseException, path: str) -> str:
    """file:line of the innermost config line in a traceback."""
    trace, place = error.__traceback__, path
    while trace is not None:
        names = (str(trace.tb_frame.f_globals.get(key, "")) for key in ("__name__", "__package__"))
        if any(name.startswith(_CONFIG_MODULES) for name in names):
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config file and apply overrides.

    Args:
        path: a .py config, which is run, or a .yaml config, which may build only what `config/trusted.py` lists.
        overrides: see `apply_overrides`.

    Raises:
        UserError: if the file does not exist or fails (file and line are named), or an override is refused.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config.{_nearest_file(path)}")
    try:
        cfg: Any = LazyConfig.load(path) if path.endswith(".py") else load_yaml_config(path, overrides)
    except UserError:
        raise
    except SyntaxError as error:
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        where = error.filename or str(error).removeprefix("Config file ").removesuffix(" has syntax error!")
        raise UserError(f"{where}:{cause.lineno}: {cause.msg}") from error
    except Exception as error:
        raise UserError(f"{_where(error, path)}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path}: expected a mapping of names, got a list")
    try:
        return apply_overrides(cfg, overrides, variants_of(path) if overrides else None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def variants_of(path: str | os.PathLike[str]) -> Mapping[str, Mapping[str, Any]]:
    """Named variants of a config: `variants` in `common/variants.py` of the folders that contain it, or the shipped."""
    for folder in (*Path(path).resolve().parents, FOLDER):
        file = folder / "common" / "variants.py"
        if file.is_file():
            variants: Mapping[str, Mapping[str, Any]] = OwnLazyConfig.load(str(file), "variants")
            return variants
    return {}
