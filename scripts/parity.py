#!/usr/bin/env python
"""Our modules against numbers of the real detrex and detectron2: one row a fixture, exit 1 if any fails.

    python scripts/parity.py FOLDER

Columns: the largest absolute difference of outputs, the same over max(1, largest entry), which may be 1e-5, and of
gradients over their largest entry, which may be 1e-4.  `tests/parity/fixtures.py` says what a folder holds.
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


def line(result: Result, width: int) -> str:
    """One row."""
    output, scaled, gradient = result.worst
    gradients = f"{gradient:9.1e}" if gradient is not None else f"{'-':>9}"
    verdict = "pass" if result.passed else "FAIL"
    counted = f"{result.compared:3d} arrays"
    numbers = f"{output:9.1e}  {scaled:9.1e}  {gradients}"
    return f"{result.name:{width}}  {result.family:20}  {counted}  {numbers}  {verdict}"


def main() -> int:
    """Compare every fixture of a folder; the number of failures decides the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the fixtures were made with one")
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
