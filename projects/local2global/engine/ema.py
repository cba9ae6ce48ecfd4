"""A moving average of a model's weights, kept beside the model and swapped in for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, for all that is saved; integers are copied.

    Names are those of the state dict, which a module may choose by itself: the average can be loaded as weights.

    Args:
        model: the model whose weights start the average.
        decay: in [0, 1).
        device: where the average is kept; empty for the model's own.
    """

    def __init__(self, model: nn.Module, decay: float, device: str = "") -> None:
        self.decay = decay
        self.average = {
            name: value.to(device or value.device, copy=True) for name, value in _weights(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights after one step into the average."""
        for name, value in _weights(model).items():
            mean = self.average[name]
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.device), 1 - self.decay)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continue from a saved average.

        Raises:
            UserError: if it is of another model.
        """
        if {n: v.shape for n, v in average.items()} != {n: v.shape for n, v in self.average.items()}:
            raise UserError("checkpoint: the weight average in it (ema_state) is of another model.")
        for name, value in average.items():
            self.average[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the `with`, its own again behind it."""
        own = {name: value.clone() for name, value in _weights(model).items()}
        _assign(model, self.average)
        try:
            yield
        finally:
            _assign(model, own)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    # the tensors of a state dict are the model's own, not copies
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _assign(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in _weights(model).items():
        value.copy_(values[name])
