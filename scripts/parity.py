#!/usr/bin/env python
"""Compare our modules with recorded numbers of the real detrex and detectron2; exit 1 if any fixture fails.

    python scripts/parity.py                # the fixtures in tests/parity/recorded
    python scripts/parity.py FOLDER

Columns: the largest absolute difference of outputs; the same divided by max(1, largest entry), limit 1e-5; the largest
difference of gradients divided by their largest entry, limit 1e-4. `tests/parity/fixtures.py` describes the format of a
folder, `tests/parity/record.py` writes one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from local2global.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from parity.families import Result, check
from parity.fixtures import read_fixtures

RECORDED = Path(__file__).resolve().parents[1] / "tests" / "parity" / "recorded"


def line(result: Result, width: int) -> str:
    """Format one fixture's row."""
    output, scaled, gradient = result.worst
    gradients = f"{gradient:9.1e}" if gradient is not None else f"{'-':>9}"
    verdict = "pass" if result.passed else "FAIL"
    compared = f"{result.compared:3d} arrays"
    numbers = f"{output:9.1e}  {scaled:9.1e}  {gradients}"
    return f"{result.name:{width}}  {result.family:20}  {compared}  {numbers}  {verdict}"


def main() -> int:
    """Compare every fixture of a folder and print one row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", default=RECORDED)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the fixtures used one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        fixtures = read_fixtures(options.folder)
    except UserError as error:
        sys.stderr.write(f"parity: {error}\n")
        return 1
    results = [check(fixture) for fixture in fixtures.values()]
    width = max((len(result.name) for result in results), default=7)
    heads = f"{'output':>9}  {'of scale':>9}  {'gradient':>9}"
    print(f"{'fixture':{width}}  {'family':20}  {'compared':10}  {heads}")  # noqa: T201
    for result in results:
        print(line(result, width))  # noqa: T201
        for problem in result.problems:
            print(f"  {problem}")  # noqa: T201
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} fixtures agree")  # noqa: T201
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
