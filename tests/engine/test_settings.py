"""Settings of the trainer."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from local2global.engine.settings import autocast_dtype


def amp(enabled=True, dtype="bfloat16"):
    return OmegaConf.create({"enabled": enabled, "dtype": dtype})


@pytest.mark.parametrize(("instructions", "expected"), [([], None), (["avx512_bf16"], torch.bfloat16)])
def test_a_cpu_uses_bf16_only_if_it_has_the_instructions(monkeypatch, instructions, expected):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True), raising=False
    )
    assert autocast_dtype(amp(), torch.device("cpu")) is expected
    assert autocast_dtype(amp(), torch.device("meta")) is torch.bfloat16


def test_other_precisions_are_as_configured():
    assert autocast_dtype(amp(enabled=False), torch.device("cpu")) is None
    assert autocast_dtype(amp(dtype="fp16"), torch.device("cpu")) is torch.float16
