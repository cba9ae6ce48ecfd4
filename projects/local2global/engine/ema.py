"""Exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, for every tensor of the state dict.

    Integer tensors are copied.  The average has the state dict's names, so it can be loaded as weights.

    Args:
        model: provides the initial average.
        decay: in [0, 1).
        device: where the average is stored; "" for the device of each tensor.
    """

    def __init__(self, model: nn.Module, decay: float, device: str = "") -> None:
        self.decay = decay
        self.average = {
            name: value.to(device or value.device, copy=True) for name, value in _tensors(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after one optimizer step."""
        for name, value in _tensors(model).items():
            mean = self.average[name]
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.device), 1 - self.decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Replace the average by a saved one.

        Raises:
            UserError: if names or shapes differ.
        """
        if {n: v.shape for n, v in average.items()} != {n: v.shape for n, v in self.average.items()}:
            raise UserError("checkpoint: its weight average (ema_state) belongs to another model.")
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the `with`; restore its own weights on exit."""
        own = {name: value.clone() for name, value in _tensors(model).items()}
        _assign(model, self.average)
        try:
            yield
        finally:
            _assign(model, own)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, which share storage with the model."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in _tensors(model).items():
        value.copy_(values[name])
