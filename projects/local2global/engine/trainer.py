"""The state of a training run and its one step; everything else a run does is a hook or lies in `run.py`."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..structures import constant
from ..weights.checkpoint import load_checkpoint, load_weights
from .ema import WeightAverage
from .metrics import RunLog
from .processes import gather, rank, reduce, world_size
from .run import (
    PRECISIONS,
    Interruption,
    build,
    complaint_about,
    endless,
    name_clips,
    random_state,
    restore_random_state,
    seed_all,
)


class Trainer:
    """The state of one run, and the one step everything else is a hook of.

    Args:
        cfg: the whole config; `train` is complete (see `train_settings`).
        device: this process's.
        console: where progress is drawn.
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
        self.precision = PRECISIONS[amp.dtype] if amp.enabled else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        ema = cfg.train.model_ema
        self.average: WeightAverage | None = None
        if ema.enabled:
            self.average = WeightAverage(self.model, ema.decay, ema.device)

    def initialize(self) -> str:
        """Load `train.init_checkpoint`, as far as it fits; what did not, or "" where there is nothing to load."""
        path = self.settings.init_checkpoint
        if not path:
            return ""
        report = load_weights(
            self.model,
            load_checkpoint(path),
            strict=False,
            source=str(path),
            partial=self.settings.init_partial,
        )
        lines = [f"weights of {path}:", *report.summary()]
        self.console.print("\n".join(lines), highlight=False, soft_wrap=True)
        if self.average is not None:
            self.average.load(self.model.state_dict())
        return "\n".join(lines) + "\n"

    def resume(self, content: Mapping[str, Any], source: str) -> None:
        """Take up a checkpoint of this trainer, read from `source`; random states follow with the batches."""
        lacking = [
            key for key in ("model", "optimizer", "iteration", "scaler", "random") if key not in content
        ]
        if lacking:
            raise UserError(
                f"{source}: without {', '.join(lacking)}, none to resume from. "
                "Give it as train.init_checkpoint."
            )
        load_weights(self.model, content, source=source)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except ValueError as error:
            raise UserError(f"{source}: the optimizer in it has other parameters ({error}).") from error
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load(content.get("ema_state") or self.model.state_dict())
        self.iteration = content["iteration"]
        self.start = self.iteration + 1

    def state(self) -> dict[str, Any]:
        """What `resume` reads; every process must ask at the same time."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_state": self.average.average if self.average is not None else None,
            "iteration": self.iteration,
            "seed": self.settings.seed,
            "random": gather(random_state(self.device)),
        }

    def run(
        self, hooks: Sequence[Callable[[Trainer], None]], states: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Train from `start` to `max_iter`, calling every hook after every step; an interruption ends it.

        Args:
            hooks: what follows a step, in this order.
            states: every process's random state to start from, of a checkpoint.
        """
        wrapped = self._distribute()
        self.model.train()
        batches = self._batches(states)
        while self.iteration + 1 < self.max_iter and not self.interruption.agreed:
            self.iteration += 1
            self.step(wrapped, batches)
            for hook in hooks:
                hook(self)

    def step(self, model: nn.Module, batches: Iterator[Any]) -> None:
        """One optimizer step on `train.accumulate` batches, at this iteration's learning rates."""
        begin = time.perf_counter()
        # where stays below 1: several schedules are undefined there
        factor = self.schedule(self.iteration / self.max_iter)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = float(base * factor)
        self.optimizer.zero_grad(set_to_none=True)
        count = self.settings.accumulate
        parts: list[tuple[dict[str, Tensor], Any]] = []
        waited = 0.0
        for part in range(count):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            together = part + 1 == count or not isinstance(model, DistributedDataParallel)
            with nullcontext() if together else model.no_sync():  # type: ignore[operator]
                parts.append((self._backward(model, batch, count), batch))
        norm = self._clip()
        self._agree(parts, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        means = {name: sum(losses[name] for losses, _ in parts) / count for name in parts[0][0]}
        self._measure({**means, "total_loss": _total(means)}, norm, time.perf_counter() - begin, waited)

    def _backward(self, model: nn.Module, batch: Any, count: int) -> dict[str, Tensor]:
        """Gradients of one batch; its losses."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            try:
                losses = model(batch)
            except UserError as error:
                where = f"in clips of {name_clips(batch)}"
                raise UserError(f"iteration {self.iteration}: {error}, {where}.") from error
        if isinstance(losses, Tensor):
            losses = {"loss": losses}
        self.scaler.scale(_total(losses) / count).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _clip(self) -> Tensor | None:
        """Clip the gradients; their norm."""
        clip = self.settings.clip_grad
        if not clip.enabled:
            return None
        self.scaler.unscale_(self.optimizer)
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        return nn.utils.clip_grad_norm_(weights, **clip.params)

    def _agree(self, parts: Sequence[tuple[Mapping[str, Tensor], Any]], norm: Tensor | None) -> None:
        """All processes take the step or none: not where a number is not finite.  The one wait for the device here."""
        numbers = [_total(losses) for losses, _ in parts]
        # a scaler skips a step of broken gradients by itself; without one the weights would be lost
        if norm is not None and not self.scaler.is_enabled():
            numbers.append(norm)
        broken = ~torch.stack(numbers).isfinite().all()
        flags = reduce(torch.stack((broken, constant(self.interruption.asked, broken))), self.device, "max")
        self.interruption.agreed |= bool(flags[1])
        if not flags[0]:
            return
        complaint = next(
            (
                complaint_about(self.iteration, losses, batch)
                for losses, batch in parts
                if not math.isfinite(_total(losses).item())
            ),
            "",
        )
        bad_norm = f"iteration {self.iteration}: the gradient's norm is {norm}. Lower optimizer.lr."
        raise UserError(next(filter(None, gather(complaint)), bad_norm))

    def _measure(self, sums: dict[str, Tensor], norm: Tensor | None, seconds: float, waited: float) -> None:
        kept = self.measured
        self.measured = {
            "losses": sums,
            "norm": norm,
            "steps": kept.get("steps", 0) + 1,
            "seconds": kept.get("seconds", 0.0) + seconds,
            "waited": kept.get("waited", 0.0) + waited,
        }

    def _distribute(self) -> nn.Module:
        if world_size() == 1:
            return self.model
        options = dict(self.settings.ddp)
        compress = options.pop("fp16_compression")
        places = [self.device] if self.device.type == "cuda" else None
        model = DistributedDataParallel(self.model, device_ids=places, **options)
        if compress:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

            model.register_comm_hook(None, fp16_compress_hook)
        return model

    def _batches(self, states: Sequence[Mapping[str, Any]] | None) -> Iterator[Any]:
        """The loader's batches from `start` on; then the global random state is what it was there.

        The first batch is fetched before that state is set, since starting a loader's workers draws from it.
        """
        if hasattr(self.loader, "seek"):
            self.loader.seek(self.start, self.settings.accumulate)
        elif self.start:
            self.console.print(
                "dataloader.train has no seek(): batches start anew, this resume is not exact."
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
