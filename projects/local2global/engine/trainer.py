"""The trainer: the state of a run and one optimizer step.  Everything after a step is a hook (`hooks.py`)."""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError, first_line
from ..structures import constant
from ..weights.checkpoint import load_checkpoint, load_weights
from ..weights.find import find_weights
from ..weights.report import LoadReport
from .ema import WeightAverage
from .feature_cache import FeatureCache
from .interruption import Interruption
from .metrics import RunLog
from .processes import gather, rank, reduce, world_size
from .rng import preserve_random_state, random_state, restore_random_state, seed_all
from .settings import autocast_dtype, build


class Trainer:
    """Model, optimizer, schedule, data and counters of one training run.

    Args:
        cfg: the whole config; `cfg.train` is complete (see `train_settings`).
        device: the device of this process.
        console: output for messages and the progress bar.

    Attributes:
        iteration: the last finished iteration, counted from 0; -1 before the first step.
        start: the first iteration of this process, above 0 after a resume.
        log: metrics log of the first process, None on other processes.
        scores: scores of the last evaluation.
        measured: losses and times since the last log entry.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, console: Console) -> None:
        self.cfg, self.settings, self.device, self.console = cfg, cfg.train, device, console
        self.folder = Path(cfg.train.output_dir)
        self.max_iter: int = cfg.train.max_iter
        self.start, self.iteration = 0, -1
        self.log: RunLog | None = None
        self.interruption = Interruption()
        self.scores: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}

        self.model: nn.Module = build(cfg, "model").to(device)
        with_model = copy.deepcopy(cfg)
        with_model.optimizer.params.model = self.model
        self.optimizer: torch.optim.Optimizer = build(with_model, "optimizer")
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule: Callable[[float], float] = build(cfg, "lr_multiplier")
        self.loader = build(cfg, "dataloader.train")
        amp = cfg.train.amp
        self.precision = autocast_dtype(amp, device)
        if amp.enabled and self.precision is None:
            console.print(
                "train.amp: this CPU has no bf16 instructions; training in float32.", soft_wrap=True
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        ema = cfg.train.model_ema
        self.average: WeightAverage | None = None
        if ema.enabled:
            self.average = WeightAverage(self.model, ema.decay, ema.device)

    def initialize(self) -> tuple[str, LoadReport | None]:
        """Load `train.init_checkpoint` where it fits.

        Returns:
            The path of the weights, and the report of loaded and skipped tensors; "" and None without a checkpoint.
        """
        name = self.settings.init_checkpoint
        if not name:
            return "", None
        path = find_weights(name)
        report = load_weights(
            self.model,
            load_checkpoint(path),
            strict=False,
            source=str(path),
            partial=self.settings.init_partial,
        )
        if self.average is not None:
            self.average.load(self.model.state_dict())
        return str(path), report

    def resume(self, content: Mapping[str, Any], source: str) -> None:
        """Restore a checkpoint of this trainer, except for the random states, which `run` restores.

        Args:
            content: what `load_last` returns.
            source: its path, for messages.

        Raises:
            UserError: if the checkpoint is damaged or belongs to another model or optimizer.
        """
        report = load_weights(self.model, content, source=source)
        if report.reshaped:
            raise UserError(f"{source}: cannot resume with another class list. Use train.init_checkpoint.")
        self._resume_optimizer(content["optimizer"], source)
        try:
            with preserve_random_state(self.device):
                for state in content["random"]:
                    restore_random_state(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{source}: cannot resume, its 'random' is damaged.") from error
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load(content.get("ema_state") or self.model.state_dict())
        self.iteration = content["iteration"]
        self.start = self.iteration + 1

    def _resume_optimizer(self, state: Mapping[str, Any], source: str) -> None:
        """Restore the optimizer's state, of the same kind of optimizer with the same parameters."""
        own = self.optimizer.state_dict()["param_groups"][0]
        try:
            saved = state["param_groups"][0]
            # Another version of torch adds or removes settings; another optimizer does both.
            if own.keys() - saved.keys() and saved.keys() - own.keys():
                raise ValueError("another kind of optimizer")
            self.optimizer.load_state_dict(dict(state))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = first_line(error) if isinstance(error, ValueError) else "damaged"
            raise UserError(f"{source}: its optimizer does not fit ({reason}).") from error

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint, as `resume` reads it.  A collective call: all processes must make it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_state": self.average.average if self.average is not None else None,
            "classes": [dict(entry) for entry in getattr(self.model, "classes", ())] or None,
            "iteration": self.iteration,
            "seed": self.settings.seed,
            "random": gather(random_state(self.device)),
        }

    def run(
        self, hooks: Sequence[Callable[[Trainer], None]], states: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Train up to `max_iter` or an interruption, calling every hook after every step.

        Args:
            hooks: called in this order.
            states: random state of each process, from a checkpoint.
        """
        if self.settings.cache_features:
            module: Any = self.model
            module.feature_cache = FeatureCache(module, self.settings.cache_features)
        model = self._distribute()
        self.model.train()
        batches = self._batches(states)
        while self.iteration + 1 < self.max_iter and not self.interruption.agreed:
            self.iteration += 1
            self.step(model, batches)
            for hook in hooks:
                hook(self)

    def step(self, model: nn.Module, batches: Iterator[Any]) -> None:
        """One optimizer step over `train.accumulate` batches, with the learning rates of this iteration.

        A model with a method `normalizer(clips)` computes the loss divisors of all clips of the step at once and
        receives them as `model(batch, normalizer)`; the losses of the batches are then summed.  The gradient equals
        that of one batch of all clips up to rounding, except that a batch pads its frames to its own largest frame
        (padding enters the GroupNorm of the pixel encoder).  For other models the losses are averaged over batches.
        """
        begin = time.perf_counter()
        # The argument stays below 1, where some schedules are undefined.
        factor = self.schedule(self.iteration / self.max_iter)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = float(base * factor)
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = list(itertools.islice(batches, self.settings.accumulate))
        data_time = time.perf_counter() - begin
        extra, divisor = self._normalization(micro_batches)
        parts: list[tuple[dict[str, Tensor], Any]] = []
        for i, batch in enumerate(micro_batches, start=1):
            synchronise = i == len(micro_batches) or not isinstance(model, DistributedDataParallel)
            with nullcontext() if synchronise else model.no_sync():  # type: ignore[operator]
                parts.append((self._backward(model, batch, extra, divisor), batch))
        norm = self._clip()
        self._check_finite(parts, norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A loss scaler skips a step with overflowed gradients and lowers its scale.
        if self.average is not None and self.scaler.get_scale() >= scale:
            self.average.update(self.model)
        losses = {
            name: torch.stack([losses[name] for losses, _ in parts]).sum(dim=0) / divisor
            for name in parts[0][0]
        }
        self._measure({**losses, "total_loss": _total(losses)}, norm, time.perf_counter() - begin, data_time)

    def _normalization(self, micro_batches: Sequence[Any]) -> tuple[tuple[Any, ...], int]:
        """Further arguments of the model, and the divisor of the sum of losses over the batches of a step."""
        normalizer = getattr(self.model, "normalizer", None)
        if normalizer is None or len(micro_batches) == 1:
            return (), len(micro_batches)
        return (normalizer([clip for batch in micro_batches for clip in batch]),), 1

    def _backward(
        self, model: nn.Module, batch: Any, extra: tuple[Any, ...], divisor: int
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of one batch; return its detached losses."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            try:
                losses = model(batch, *extra)
            except UserError as error:
                where = f"in clips of {name_clips(batch)}"
                raise UserError(f"iteration {self.iteration}: {error}, {where}.") from error
        if isinstance(losses, Tensor):
            losses = {"loss": losses}
        self.scaler.scale(_total(losses) / divisor).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _clip(self) -> Tensor | None:
        """Clip the gradients and return their norm before clipping; None if clipping is disabled."""
        clip = self.settings.clip_grad
        if not clip.enabled:
            return None
        self.scaler.unscale_(self.optimizer)
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        return nn.utils.clip_grad_norm_(weights, **clip.params)

    def _check_finite(self, parts: Sequence[tuple[Mapping[str, Tensor], Any]], norm: Tensor | None) -> None:
        """Raise on all processes if a loss or the gradient norm of any process is not finite.

        Also synchronises the interruption flag.  This is the only device synchronisation of a step.
        """
        numbers = [_total(losses) for losses, _ in parts]
        # A loss scaler skips steps with overflowed gradients by itself.
        if norm is not None and not self.scaler.is_enabled():
            numbers.append(norm)
        broken = ~torch.stack(numbers).isfinite().all()
        flags = torch.stack((broken, constant(self.interruption.requested, broken)))
        any_broken, any_interrupted = reduce(flags, self.device, "max")
        self.interruption.agreed |= bool(any_interrupted)
        if not any_broken:
            return
        message = ""
        for losses, batch in parts:
            if not message and not math.isfinite(_total(losses).item()):
                message = describe_losses(self.iteration, losses, batch)
        bad_norm = f"iteration {self.iteration}: the gradient norm is {norm}. Lower optimizer.lr."
        raise UserError(next(filter(None, gather(message)), bad_norm))

    def _measure(
        self, losses: dict[str, Tensor], norm: Tensor | None, seconds: float, data_time: float
    ) -> None:
        previous = self.measured
        self.measured = {
            "losses": losses,
            "norm": norm,
            "steps": previous.get("steps", 0) + 1,
            "seconds": previous.get("seconds", 0.0) + seconds,
            "data_time": previous.get("data_time", 0.0) + data_time,
        }

    def _distribute(self) -> nn.Module:
        """The model, wrapped in DistributedDataParallel if there are several processes."""
        if world_size() == 1:
            return self.model
        options = dict(self.settings.ddp)
        compress = options.pop("fp16_compression")
        device_ids = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch renames `broadcast_buffers`, which is detrex's key.
            warnings.simplefilter("ignore", FutureWarning)
            model = DistributedDataParallel(self.model, device_ids=device_ids, **options)
        if compress:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

            model.register_comm_hook(None, fp16_compress_hook)
        return model

    def _batches(self, states: Sequence[Mapping[str, Any]] | None) -> Iterator[Any]:
        """The loader's batches from iteration `start` on, after restoring or seeding the random generators.

        The first batch is fetched before the generators are set, because starting the loader's workers draws
        random numbers.
        """
        if hasattr(self.loader, "seek"):
            self.loader.seek(self.start, self.settings.accumulate)
        elif self.start:
            self.console.print(
                "dataloader.train has no seek(): batches restart from the first, so this resume is not exact."
            )
        batches = endless(iter(self.loader))
        first = [] if self.start >= self.max_iter else [next(batches)]
        if states is not None and len(states) == world_size():
            restore_random_state(states[rank()])
        else:
            seed_all(self.settings.seed + rank() + self.start)
        return itertools.chain(first, batches)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of all losses, in float32."""
    return torch.stack([value.float() for value in losses.values()]).sum()


def describe_losses(iteration: int, losses: Mapping[str, Tensor], batch: Any) -> str:
    """One line that names the losses that are not finite, the iteration and the clips."""
    values = {name: value.item() for name, value in losses.items()}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return (
        f"iteration {iteration}: {', '.join(bad) or 'the sum of losses is not finite'}, in clips of "
        f"{name_clips(batch)}. This step was not saved; lower optimizer.lr or inspect these videos."
    )


def name_clips(batch: Any) -> str:
    """The video ids and keys of a batch of clips."""
    return ", ".join(
        f"video {getattr(clip, 'video_id', '?')} (key {'/'.join(map(str, getattr(clip, 'key', ())))})"
        for clip in batch
    )


def endless(batches: Iterator[Any]) -> Iterator[Any]:
    """Pass on the batches of a loader.

    Raises:
        UserError: if the loader ends, or one of its workers is killed.
    """
    count = 0
    try:
        for batch in batches:
            count += 1
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data-loading worker was killed after {count} batches, perhaps for lack of memory. Continue with "
            "--resume, or lower num_workers of dataloader.train."
        ) from error
    raise UserError(f"dataloader.train ended after {count} batches; it must be endless.")
