"""The one seam: lazy configs by detectron2 where it is installed, by ours with the same meaning elsewhere.

A config is a Python file whose dictionaries describe objects to be built: `LazyCall(target)(**arguments)`
notes a call, `instantiate` makes it.  `L2G_STANDALONE=1` in the environment keeps an installed
detectron2 out.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
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
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .errors import UserError

_FLAGS = {"allow_objects": True}
_MODULE = "local2global_config"
_CONFIG_MODULES = (_MODULE, "detectron2._cfg_loader")
_UNSAVED = "_unsaved_"

# What a config.yaml from a stranger may build: the parts of a model and of its run, and classes of libraries.
# Not all of torch: it can download code (`torch.hub.load`) and run a shell (`torch.utils.collect_env.run`).
_OURS = tuple(f"local2global.{room}" for room in ("modeling", "data", "evaluation", "postprocess", "optim"))
_CLASSES = ("torch.nn", "torch.optim", "fvcore.common.param_scheduler")

# `num_classes="${len:${..classes}}"`: a config states its class list once.
OmegaConf.register_new_resolver("len", len, replace=True)


# --- Targets: names of callables ---


def locate(name: str) -> Any:
    """The object of a dotted name, its module imported.

    Raises:
        UserError: nothing has that name.
    """
    parts = name.split(".")
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


def _target_name(target: Any) -> str | None:
    """The dotted name under which `locate` finds `target`; None where there is none, as for a lambda."""
    name = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', '<')}"
    try:
        return None if "<" in name or locate(name) != target else name
    except (UserError, ImportError):
        return None


def _within(name: str, prefixes: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def _nearest(word: str, choices: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


# --- Our LazyCall, instantiate and LazyConfig ---


class OwnLazyCall:
    """`OwnLazyCall(target)(**arguments)`: a config node that describes the call instead of making it."""

    def __init__(self, target: Callable[..., Any] | str | Mapping[Any, Any]) -> None:
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(
                f"LazyCall takes a callable, its name or a config that builds one, got {target!r}"
            )
        # omegaconf would take a dataclass for a schema, so such a target goes by its name.
        self._target = _target_name(target) if dataclasses.is_dataclass(target) else target

    def __call__(self, **arguments: Any) -> DictConfig:
        """The node: the arguments and `_target_`."""
        content: dict[Any, Any] = {**arguments, "_target_": self._target}
        return DictConfig(content, flags=_FLAGS)


def own_instantiate(cfg: Any) -> Any:
    """Builds what a config describes: calls, innermost first, and lists item by item; the rest stays.

    Raises:
        UserError: a value is missing ("???") or a target's name leads nowhere.
        TypeError: a target does not take the arguments; the message names the config key.
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
        raise UserError(f"{error.full_key}: a value is needed") from error
    target = arguments.pop("_target_")
    if isinstance(target, str):
        target = locate(target)
    try:
        return target(**arguments)
    except TypeError as error:
        key = cfg._get_full_key(None) if isinstance(cfg, DictConfig) else ""
        raise TypeError(f"{key or 'config'}: {getattr(target, '__qualname__', target)}: {error}") from error


def _as_config(value: Any) -> Any:
    return DictConfig(value, flags=_FLAGS) if isinstance(value, dict) else value


def _import_relative(
    path: str, chain: tuple[str, ...], name: str, names: Sequence[str], level: int
) -> ModuleType:
    """`from ..folder.file import names` in a config: by place alone, run afresh, dicts as DictConfigs."""
    if not name or "*" in names:
        raise ImportError("a config imports names from a file: `from .file import name`")
    folder = os.path.join(os.path.dirname(path), *[os.pardir] * (level - 1))
    file = os.path.normpath(os.path.join(folder, *name.split(".")) + ".py")
    if not os.path.isfile(file):
        raise ImportError(f"{file}: no such file.{_nearest_file(file)}")
    module = _run(file, chain)
    for each in names:
        if not hasattr(module, each):
            raise ImportError(f"{file}: no '{each}' in it.{_nearest(each, list(vars(module)))}")
        setattr(module, each, _as_config(getattr(module, each)))
    return module


def _run(path: str, chain: tuple[str, ...] = ()) -> ModuleType:
    """Runs a config file in a namespace of its own; nothing is patched and nothing is kept.

    Its namespace has its own `__import__`: relative imports go by place, the interpreter's is untouched.
    """
    here = os.path.realpath(path)
    if here in chain:
        raise ImportError(f"{path}: imports itself, by way of {', '.join(map(os.path.basename, chain))}")
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
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    vars(module).update(__file__=path, __builtins__={**vars(builtins), "__import__": import_})
    exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), vars(module))
    return module


class _YamlLoader(yaml.FullLoader):  # type: ignore[misc, unused-ignore]
    """Plain yaml, tuples, and names of classes and functions as detectron2 writes them; never an object."""


_YamlLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: locate(name))


class OwnLazyConfig:
    """Loads, saves and overrides configs as detectron2's `LazyConfig` does."""

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Loads a config file, .py or .yaml.

        Args:
            filename: its path.
            keys: a name or names to return; without it one DictConfig of all dicts, DictConfigs and
                ListConfigs whose name does not start with an underscore.
        """
        filename = os.fspath(filename)
        suffix = os.path.splitext(filename)[1]
        if suffix not in {".py", ".yaml", ".yml"}:
            raise ValueError(f"{filename}: a config is a .py or .yaml file")
        if suffix == ".py":
            loaded: Any = vars(_run(filename))
        else:
            with open(filename, encoding="utf-8") as file:
                loaded = OmegaConf.create(yaml.load(file, _YamlLoader) or {}, flags=_FLAGS)
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
        return DictConfig(found, flags=_FLAGS)

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """`load` of a path relative to the file that calls this."""
        caller = sys._getframe(1).f_code.co_filename
        return OwnLazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Writes yaml, interpolations kept; what yaml cannot hold becomes its `repr`, with a warning."""
        content = _saveable(OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg, "")
        _write(filename, yaml.dump(content, default_flow_style=None, allow_unicode=True, width=9999))

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """See `apply_overrides`."""
        return apply_overrides(cfg, overrides)

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """The config as Python-like lines, one value or call a line, for people to read."""
        return "\n".join(_lines(OmegaConf.to_container(cfg, resolve=True), prefix.rstrip(".")))


def _lines(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" not in value:
        for key, each in value.items():
            yield from _lines(each, f"{name}.{key}" if name else str(key))
    else:
        yield f"{name} = {_expression(value)}"


def _expression(value: Any) -> str:
    if isinstance(value, Mapping) and "_target_" in value:
        target = value["_target_"]
        name = target if isinstance(target, str) else _target_name(target) or repr(target)
        inner = (f"{key}={_expression(each)}" for key, each in value.items() if key != "_target_")
        return f"{name}({', '.join(inner)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expression(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_expression, value)) + "]"
    return repr(value)


def _saveable(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _saveable(each, f"{key}.{name}".lstrip(".")) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_saveable(each, f"{key}[{i}]") for i, each in enumerate(value))
    if key.rpartition(".")[2] == "_target_" and (name := _target_name(value)):
        return name
    try:
        yaml.dump(value)
    except (TypeError, AttributeError, pickle.PicklingError, yaml.YAMLError) as error:
        warnings.warn(f"{key}: saved as text only, it cannot be loaded again ({error})", stacklevel=3)
        return repr(value)
    return value


def _write(path: str | os.PathLike[str], text: str) -> None:
    unfinished = Path(f"{os.fspath(path)}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


# --- Overrides ---


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


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Changes a config in place by hydra's override grammar and returns it.

    Args:
        cfg: the config.
        overrides: `key=value` for a key that exists or is a parameter of the node's target, `+key=value` for
            any other, `++key=value` for either, `~key` to remove one.

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
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=added)
        except OmegaConfBaseException as error:
            raise UserError(f"'{text}': {str(error).splitlines()[0]}") from error
    return cfg


def _delete(cfg: DictConfig, key: str, value: Any) -> None:
    node, name = _parent(cfg, key)
    keys = node.keys() if isinstance(node, DictConfig) else _names(node)
    if name not in keys:
        raise UserError(f"no key '{key}'.{_nearest_key(cfg, key)}")
    if value is not None and _child(node, name) != value:
        raise UserError(f"'~{key}': its value is {_child(node, name)!r}, not {value!r}")
    del node[int(name) if isinstance(node, ListConfig) else name]


# --- The seam ---


def _choose() -> tuple[type[OwnLazyCall], type[OwnLazyConfig], Callable[[Any], Any]]:
    """detectron2's three where it can be imported, ours otherwise; overrides are checked in both."""
    if os.environ.get("L2G_STANDALONE") or importlib.util.find_spec("detectron2") is None:
        return OwnLazyCall, OwnLazyConfig, own_instantiate
    try:
        from detectron2.config import LazyCall, LazyConfig, instantiate
    except ImportError as error:
        warnings.warn(f"detectron2 is installed but broken ({error}); using our own configs", stacklevel=3)
        return OwnLazyCall, OwnLazyConfig, own_instantiate
    checked = type("LazyConfig", (LazyConfig,), {"apply_overrides": staticmethod(apply_overrides)})
    return LazyCall, checked, instantiate


LazyCall, LazyConfig, instantiate = _choose()


# --- Helpers of the commands ---


def _nearest_file(path: str) -> str:
    folder = Path(path).parent
    while not folder.is_dir():
        folder = folder.parent
    near = itertools.chain.from_iterable(
        folder.glob(pattern) for pattern in ("[!.]*", "[!.]*/*", "[!.]*/*/*")
    )
    files = [str(file) for file in itertools.islice(near, 5000) if file.suffix in {".py", ".yaml", ".yml"}]
    return _nearest(os.path.normpath(path), files)


def _where(error: BaseException, path: str) -> str:
    """file:line of the innermost config line that an error came through."""
    trace, place = error.__traceback__, path
    while trace is not None:
        names = (str(trace.tb_frame.f_globals.get(key, "")) for key in ("__name__", "__package__"))
        if any(name.startswith(_CONFIG_MODULES) for name in names):
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """A config file with overrides applied.

    Args:
        path: a .py or .yaml config.
        overrides: see `apply_overrides`.

    Raises:
        UserError: the file does not exist, does not run (file and line are named), or an override is refused.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config.{_nearest_file(path)}")
    try:
        # detectron2 would make any object that a yaml file names, so yaml is always read by ours.
        loader = LazyConfig if path.endswith(".py") else OwnLazyConfig
        cfg: Any = loader.load(path)
    except UserError:
        raise
    except SyntaxError as error:
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        where = error.filename or str(error).removeprefix("Config file ").removesuffix(" has syntax error!")
        raise UserError(f"{where}:{cause.lineno}: {cause.msg}") from error
    except Exception as error:
        raise UserError(f"{_where(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path}: a config is a mapping of names, this is a list")
    try:
        return apply_overrides(cfg, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each, str(name)) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    name = _target_name(value) if key == "_target_" else None
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
    _write(path, yaml.safe_dump(resolve(cfg), sort_keys=False, allow_unicode=True))


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
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not yaml: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a config: a mapping is expected")
    content: dict[Any, Any] = {}
    for name in only or loaded:
        if name not in loaded:
            raise UserError(f"{path}: no '{name}' in it.{_nearest(name, list(map(str, loaded)))}")
        _check_trusted(loaded[name], f"{path}: {name}")
        content[name] = loaded[name]
    return DictConfig(content, flags=_FLAGS)


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
    if isinstance(name, str) and _within(name, (*_OURS, *_CLASSES)):
        target = locate(name)
        home = str(getattr(target, "__module__", ""))
        if _within(home, _OURS) or (inspect.isclass(target) and _within(home, _CLASSES)):
            return
    raise UserError(f"{where}: a shared config may not build '{name}'. Use the original config file")
