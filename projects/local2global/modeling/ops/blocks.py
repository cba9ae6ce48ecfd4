"""Process tokens in blocks whose intermediate tensors stay in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Tokens of a block: its hidden layer of 2048 features is 8 MB.
BLOCK = 1024


def in_blocks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, for a function that acts on each token independently.

    On a CPU without gradients, the function is called for one block of tokens after another.  Intermediate tensors of
    all tokens leave the cache, and the allocator requests their memory from the operating system at every call.

    Args:
        function: tensors with the same number of tokens to one tensor with that number.
        tensors: (B, tokens, ...) each.
    """
    count = -(-tensors[0].shape[1] // BLOCK)
    cached = tensors[0].device.type == "cpu" and not torch.compiler.is_exporting()
    if count < 2 or torch.is_grad_enabled() or not cached:
        return function(*tensors)
    blocks = zip(*(tensor.chunk(count, dim=1) for tensor in tensors), strict=True)
    return torch.cat([function(*block) for block in blocks], dim=1)
