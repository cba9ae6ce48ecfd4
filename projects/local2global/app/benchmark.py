"""`l2g benchmark`: run `scripts/benchmark.py` of the repository in a subprocess.

The benchmark is not part of the package, because it contains a second implementation of the model for comparison.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "benchmark.py"


def run_benchmark(arguments: Sequence[str]) -> int:
    """Run the script and return its exit status.

    Args:
        arguments: command-line arguments of the script.

    Raises:
        UserError: if the package was installed without the repository.
    """
    if not SCRIPT.is_file():
        raise UserError(
            f"{SCRIPT}: file not found; clone the repository and install it with `pip install -e .`"
        )
    return subprocess.call([sys.executable, str(SCRIPT), *arguments])
