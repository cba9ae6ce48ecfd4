"""The paper beside what runs measured: two rows and two runs, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from local2global.app.tables import (
    Measured,
    Row,
    as_csv,
    as_markdown,
    build_table,
    read_rows,
    read_runs,
    write_table,
)
from local2global.errors import UserError

ROWS = [
    Row("ovis/a.py", (3, "baseline", "OVIS"), {"AP": 31.6, "AP50": 54.7}, "l2g train configs/ovis/a.py"),
    Row("ovis/b.py", (3, "+ aligner", "OVIS"), {"AP": 36.2, "AP50": 63.2}, "l2g train configs/ovis/b.py"),
]


def make_run(folder: Path, paper: str, entries: list[dict]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: 1\npaper: {paper}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"iterat')
    (folder / "versions.json").write_text(json.dumps({"commit": "abcdef0123456789", "hardware": "4 x V100"}))


@pytest.fixture
def runs(tmp_path: Path) -> list[Measured]:
    """A run with two evaluations, an untold score and half a line; a folder of no row beside it."""
    entries = [
        {"iteration": 4, "segm/AP": 1.0},
        {"iteration": 9, "segm/AP": 33.0, "segm/AP50": -1.0},
        {"iteration": 10, "total_loss": 3.0},
    ]
    make_run(tmp_path / "output/one", "{table: 3, row: baseline, dataset: OVIS, AP: 31.6}", entries)
    make_run(tmp_path / "output/none", "null", [])
    return read_runs([tmp_path / "output"])


def test_a_runs_scores_are_those_of_its_last_evaluation(runs):
    (run,) = runs
    assert run.names == (3, "baseline", "OVIS")
    assert run.scores == {"AP": 33.0}
    assert run.facts == {"iterations": 10, "commit": "abcdef0123456789", "hardware": "4 x V100"}


def test_a_run_stands_below_its_row_with_the_difference(runs):
    text = as_markdown(build_table(ROWS, runs))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| baseline | OVIS | paper | 31.6 | 54.7 | - |")
    assert (
        f"| baseline | OVIS | {runs[0].folder} | 33.0 (+1.4) | - | 10 | abcdef0123 | 4 x V100 |" in lines[2]
    )
    assert lines[3].startswith("| + aligner | OVIS | paper | 36.2 | 63.2 |")


def test_csv_holds_the_same(runs, tmp_path):
    lines = build_table(ROWS, runs)
    head, *body = as_csv(lines).splitlines()
    assert head.startswith("table,row,dataset,source,AP,AP50")
    assert body[1].startswith(f"3,baseline,OVIS,{runs[0].folder},33.0,,")
    write_table(tmp_path / "t.csv", lines)
    assert (tmp_path / "t.csv").read_text() == as_csv(lines)
    with pytest.raises(UserError, match=r"written as \.md or \.csv"):
        write_table(tmp_path / "t.txt", lines)


def test_a_run_of_no_row_and_a_folder_that_is_not_there_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="no config has this row"):
        build_table(ROWS[1:], runs)
    with pytest.raises(UserError, match="no such folder of runs"):
        read_runs([tmp_path / "nowhere"])


def test_two_configs_of_one_row_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text('paper = dict(table=1, row="a", dataset="b", AP=1.0)\n')
    with pytest.raises(UserError, match=r"two\.py: table 1, a, is one\.py's row too"):
        read_rows(tmp_path)
