"""Fast deformable sampling, behind one function.

CPUs use the embedding bags of `bags.py`, GPUs the Triton kernel of `triton_kernel.py`.  Both compute what
`deformable.sample_definition` defines, forward and backward.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...structures import Shapes, constant
from .bags import sample_bags, sample_gathers

#: (values, x, y, weights, levels) to the weighted sum; see `triton_kernel.sample`.
Kernel = Callable[..., Tensor]

_log = logging.getLogger(__name__)

#: The kernel for each dtype of values that has been checked; None where the check failed.
_CHECKED: dict[torch.dtype, Kernel | None] = {}


def deformable_sample(values: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples of feature levels (Zhu et al., ICLR 2021, Eq. 3).

    Pixel (i, j) of a level is centred at ((j + .5) / width, (i + .5) / height), and a level is zero outside its map
    (`align_corners=False`).

    Args:
        values: (B, S, heads, D) tokens of all levels, flattened and concatenated.
        shapes: (height, width) of every level, in the order of the tokens.
        x: (B, Q, heads, L, points) in [0, 1] of the level's width, float32.
        y: (B, Q, heads, L, points) in [0, 1] of the level's height, float32.
        weights: (B, Q, heads, L, points), float32.

    Returns:
        (B, Q, heads * D), in the dtype of the values.
    """
    if torch.compiler.is_exporting():
        return sample_gathers(values, shapes, x, y, weights)
    kernel = _gpu_kernel(values)
    if kernel is not None:
        return kernel(values, x, y, weights, level_table(shapes, x))
    return sample_bags(values, shapes, x, y, weights)


def level_table(shapes: Shapes, like: Tensor) -> Tensor:
    """(L, 3) int32 on the device of `like`: height, width and first token of every level."""
    starts = itertools.accumulate((h * w for h, w in shapes[:-1]), initial=0)
    rows = [(h, w, start) for (h, w), start in zip(shapes, starts, strict=True)]
    return constant(rows, like, torch.int32)


def _gpu_kernel(values: Tensor) -> Kernel | None:
    """The Triton kernel, if it can be used; its gradients are not deterministic.

    The first call for a dtype compares the kernel with the embedding-bag implementation, except during compilation or
    CUDA graph capture.
    """
    if not values.is_cuda or torch.are_deterministic_algorithms_enabled():
        return None
    if values.dtype not in _CHECKED:
        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return None
        _CHECKED[values.dtype] = checked_kernel(values.device, values.dtype)
    return _CHECKED[values.dtype]


def checked_kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel if it runs on `device` and matches the embedding-bag implementation; otherwise None and a warning.

    `L2G_TRITON=0` in the environment disables the kernel.
    """
    if os.environ.get("L2G_TRITON") == "0":
        return None
    try:
        from .triton_kernel import sample
    except ImportError:  # Triton is not installed, or torch lacks `triton_op`
        return None
    try:
        error = _relative_error(sample, device, dtype)
    except Exception as failure:
        reason = str(failure).strip().split("\n")[0] or type(failure).__name__
    else:
        if error <= (1e-3 if dtype.itemsize >= 4 else 3e-2):
            return sample
        reason = f"relative error {error:.1e}"
    _log.warning("The Triton sampling kernel is disabled for %s on %s: %s", dtype, device, reason)
    return None


def _relative_error(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of the kernel's output and gradients, relative to the largest entry of each."""
    shapes = ((2, 5), (5, 7), (8, 9))
    generator = torch.Generator().manual_seed(0)
    points = (2, 19, 4, len(shapes), 4)  # some outside the maps
    x, y = (torch.rand(points, generator=generator) * 1.4 - 0.2 for _ in "xy")
    values = torch.randn(2, sum(h * w for h, w in shapes), 4, 32, generator=generator).to(dtype)
    inputs = [values, x, y, torch.rand(points, generator=generator)]
    cotangent = torch.randn(2, 19, 4 * 32, generator=generator).to(dtype)

    def results(function: Kernel, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        gradients = torch.autograd.grad(out, leaves, cotangent.to(out.dtype))
        return [tensor.detach().float().cpu() for tensor in (out, *gradients)]

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        expected = results(
            lambda values, *points: sample_bags(values, shapes, *points),
            [tensor.float() for tensor in inputs],
            cotangent.float(),
        )
        actual = results(
            lambda values, x, y, weights: kernel(values, x, y, weights, level_table(shapes, x)),
            [tensor.to(device) for tensor in inputs],
            cotangent.to(device),
        )
    return max(
        float(((a - b).abs().max() / a.abs().max()).nan_to_num(torch.inf))
        for a, b in zip(expected, actual, strict=True)
    )
