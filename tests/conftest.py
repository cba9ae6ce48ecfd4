"""What all tests share: one thread, a fixed seed, and the way to the data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ["small_model", "browser"]


# Without a GPU, Triton's kernels are interpreted.  Said before anything imports Triton, which reads it then.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Numbers and clips that are not part of the project."""
    folder = Path(os.environ.get("L2G_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set L2G_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Numbers produced by the real detrex and detectron2."""
    if not (shared / "golden").is_dir():
        pytest.skip(f"no golden numbers in {shared}")
    return shared / "golden"
