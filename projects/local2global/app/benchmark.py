"""`l2g benchmark`: the repository's `scripts/benchmark.py`, in a process of its own.

The benchmark is no part of the package: it holds a second layout of the model, to compare with.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "benchmark.py"


def run_benchmark(arguments: Sequence[str]) -> int:
    """The script's exit status, given its arguments.

    Raises:
        UserError: if the package was installed without the repository round it.
    """
    if not SCRIPT.is_file():
        raise UserError(
            f"{SCRIPT}: no such script; clone the repository and install it with `pip install -e .`"
        )
    return subprocess.call([sys.executable, str(SCRIPT), *arguments])
