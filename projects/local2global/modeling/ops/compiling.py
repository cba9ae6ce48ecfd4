"""Compilation of parts of a model for inference by `torch.compile`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence

import torch
from torch import nn

from . import deformable_sample

_log = logging.getLogger(__name__)


def compile_parts(parts: Sequence[nn.Module], device: torch.device) -> bool:
    """Compile modules in place; their next call at every input size compiles.

    On a CPU, inductor folds and packs the weights into the compiled code (`freezing`, set for the whole process).
    Changed weights take effect after another call of this function.  On a GPU, the modules become CUDA graphs.

    Args:
        parts: modules whose inputs and outputs are tensors, or containers of tensors.
        device: their device.

    Returns:
        Whether the modules are compiled.  Without a C++ compiler on a CPU, they are not, and a warning is logged.
    """
    if device.type == "cpu" and not _has_cpp_compiler():
        _log.warning("compile_stream: no C++ compiler found (set CXX); the model runs without compilation")
        return False
    if device.type == "cpu":
        from torch._inductor import config  # takes a second to import

        # Dynamo reads this setting when it traces, so the options of `compile` would have no effect.
        config.freezing = True
        torch.compiler.reset()  # code with the weights of an earlier call
    else:
        _check_kernels(device)
    for part in parts:
        part.compile(dynamic=False, mode=None if device.type == "cpu" else "reduce-overhead")
    return True


def _check_kernels(device: torch.device) -> None:
    """Check the sampling kernels of a device, which is not possible while compiling."""
    point = torch.zeros(1, 1, 1, 1, 1, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        deformable_sample(point[0].to(dtype), [(1, 1)], point, point, point)


def _has_cpp_compiler() -> bool:
    """Whether the C++ compiler that inductor calls is installed."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", default)) is not None
