"""Settings of the trainer: defaults and checks of `cfg.train`, and construction of the parts of a config."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, Protocol, runtime_checkable

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..config.targets import MAX_INTEGER, check_arguments, shown
from ..errors import UserError, first_line, wrapped_user_error
from ..lazy import instantiate

#: Every key of `cfg.train` with its default.  `accumulate`, `amp.dtype`, `cache_features` and `init_partial`
#: are not detrex's.
DEFAULTS: dict[str, Any] = {
    "output_dir": "./output",
    "init_checkpoint": "",
    "init_partial": False,
    "max_iter": 90000,
    "accumulate": 1,
    "cache_features": "",
    "amp": {"enabled": False, "dtype": "float16"},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "clip_grad": {"enabled": False, "params": {"max_norm": 0.1, "norm_type": 2.0}},
    "seed": -1,
    "fast_dev_run": {"enabled": False},
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    "eval_period": 5000,
    "log_period": 20,
    "wandb": {"enabled": False, "params": {}},
    "model_ema": {"enabled": False, "decay": 0.999, "device": "", "use_ema_weights_for_eval_only": False},
    "device": "cuda",
}

#: Smallest allowed value of whole numbers.
_MINIMUM = {
    "train.max_iter": 1,
    "train.accumulate": 1,
    "train.log_period": 1,
    "train.checkpointer.period": 1,
    "train.checkpointer.max_to_keep": 0,
    "train.eval_period": 0,
}

#: Allowed values of other numbers.
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "train.clip_grad.params.max_norm": (lambda value: value > 0, "a positive number"),
    "train.clip_grad.params.norm_type": (lambda value: value > 0, "a positive number"),
    "train.model_ema.decay": (lambda value: 0 <= value < 1, "a number from 0 up to, but not, 1"),
}

#: Keys whose content is passed on unchecked.
_FREE = ("train.wandb.params",)

#: Keys that may be null.
_NULLABLE = ("train.checkpointer.max_to_keep", "train.init_checkpoint")

PRECISIONS = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def autocast_dtype(amp: DictConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32.

    On a CPU without bf16 instructions, bf16 is slower than float32 (3.7 times for a frame on an AVX-512 Xeon), so
    float32 is used there.

    Args:
        amp: `cfg.train.amp`.
        device: the device of the model.
    """
    if not amp.enabled:
        return None
    dtype = PRECISIONS[amp.dtype]
    return None if device.type == "cpu" and dtype is torch.bfloat16 and not _cpu_has_bf16() else dtype


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bf16 instructions; False for a torch that cannot tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def train_settings(cfg: DictConfig) -> DictConfig:
    """Check `cfg.train`, fill in the defaults in place, and return it.

    Raises:
        UserError: for an unknown key, a value of the wrong type, or a value out of range.
    """
    with _one_line("train"):
        _check(cfg.train, DEFAULTS, "train")
    cfg.train = OmegaConf.merge(DEFAULTS, cfg.train)
    settings: DictConfig = cfg.train
    if settings.fast_dev_run.enabled:
        settings.max_iter, settings.eval_period, settings.log_period = 20, 10, 1
    if not settings.output_dir.strip() or "\0" in settings.output_dir:
        raise UserError(f"train.output_dir={settings.output_dir!r}: expected a folder.")
    if settings.amp.dtype not in PRECISIONS:
        raise UserError(f"train.amp.dtype={settings.amp.dtype}: expected one of {', '.join(PRECISIONS)}.")
    if settings.wandb.enabled and importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb.enabled: wandb is not installed. Run: pip install wandb")
    return settings


def _check(value: Any, default: Any, key: str) -> None:
    """Check the type and range of a setting, and of every setting below it."""
    if isinstance(default, dict):
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value}: expected keys {', '.join(default)}.")
        for name in value if key not in _FREE else ():
            if name not in default:
                raise UserError(f"no key '{key}.{name}'. {_hint(str(name), default, key)}")
            _check(value[name], default[name], f"{key}.{name}")
        return
    if value is None and key in _NULLABLE:
        return
    expected = _expected(value, default, _MINIMUM.get(key))
    if not expected and key in _NUMBERS and not _NUMBERS[key][0](value):
        expected = _NUMBERS[key][1]
    if expected:
        raise UserError(f"{key}={value}: expected {expected}.")


def _expected(value: Any, default: Any, minimum: int | None) -> str:
    """What a value should have been, or "" if it is valid."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, float):
        return "" if is_number else "a number"
    if isinstance(default, int):
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            return "a smaller number"
        least = -math.inf if minimum is None else minimum
        kinds = {None: "a whole number", 0: "a whole number, 0 or more"}
        valid = is_number and isinstance(value, int) and value >= least
        return "" if valid else kinds.get(minimum, "a positive whole number")
    return "" if isinstance(value, str) else "text"


def _hint(name: str, known: Mapping[str, Any], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{where}.{near[0]}'?" if near else f"The keys are: {', '.join(known)}."


@runtime_checkable
class Evaluator(Protocol):
    """What evaluation needs of `dataloader.evaluator`, as detectron2's `DatasetEvaluator` has it."""

    def reset(self) -> None:
        """Forget earlier outputs."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Add the outputs of a model."""

    def evaluate(self) -> Any:
        """The scores."""


#: What a part of a config makes.
_PARTS: dict[str, tuple[Any, str]] = {
    "model": (nn.Module, "a torch module"),
    "optimizer": (torch.optim.Optimizer, "an optimizer"),
    "optimizer.params": (object, "parameter groups"),
    "lr_multiplier": (Callable, "a schedule"),
    "dataloader.train": (Iterable, "a loader"),
    "dataloader.test": (Iterable, "a loader"),
    "dataloader.evaluator": (Evaluator, "an evaluator"),
}


def require(cfg: DictConfig, *keys: str) -> None:
    """Check that the config has every part in `keys`, given as dotted names, with arguments of the right types.

    Raises:
        UserError: naming the first missing part, or the first argument of the wrong type.
    """
    for key in keys:
        if _select(cfg, key) is None:
            raise UserError(f"the config has no '{key}'; this command reads {', '.join(keys)}.")
    for key in keys:
        _checked(cfg, key)
    if "dataloader.evaluator" in keys:
        lists = [_select(cfg, f"{part}.classes") for part in ("dataloader.evaluator", "model")]
        counts = [len(classes) for classes in lists if isinstance(classes, ListConfig)]
        if len(set(counts)) > 1:
            problem = f"dataloader.evaluator.classes: {counts[0]} classes, but the model has {counts[1]}"
            raise UserError(f"{problem}. Set both to one list: classes='${{model.classes}}'.")


@contextmanager
def _one_line(key: str) -> Iterator[None]:
    """Raise errors of interpolations as a UserError."""
    try:
        yield
    except OmegaConfBaseException as error:
        problem = f"invalid config: {error.full_key or key}: {first_line(error)}"
        raise wrapped_user_error(error) or UserError(problem) from error


def _select(cfg: DictConfig, key: str) -> Any:
    """The value of a dotted key; None if it is absent, missing (???) or below a plain value."""
    with _one_line(key):
        return OmegaConf.select(cfg, key)


def _checked(cfg: DictConfig, key: str) -> Any:
    """The config node under a dotted name, after a check of all arguments, also of those behind interpolations."""
    plain = node = _select(cfg, key)
    if OmegaConf.is_config(node):
        with _one_line(key):
            plain = OmegaConf.to_container(node, resolve=True, structured_config_mode=SCMode.DICT_CONFIG)
    check_arguments(plain, key)
    is_plain = isinstance(plain, (bool, int, float, str, list, dict, NoneType))
    if key in _PARTS and is_plain and not (isinstance(plain, dict) and "_target_" in plain):
        raise UserError(f"{key}={shown(plain)}: expected {_PARTS[key][1]}, a component with a _target_")
    return node


def build(cfg: DictConfig, key: str) -> Any:
    """Instantiate the config node under the dotted name `key`.

    Raises:
        UserError: if an argument has the wrong type, a constructor rejects a value, or another object is made than
            `key` needs.
    """
    node = _checked(cfg, key)
    try:
        made = instantiate(node)
    except Exception as error:
        if (cause := wrapped_user_error(error)) is not None:
            raise cause from None
        reason = first_line(error)
        where = "" if reason.startswith(key) else f"{key}: "
        raise UserError(f"invalid config: {where}{reason}") from error
    kind, words = _PARTS.get(key, (object, ""))
    if not isinstance(made, kind):
        raise UserError(f"invalid config: {key} is {type(made).__name__}, expected {words}")
    return made
