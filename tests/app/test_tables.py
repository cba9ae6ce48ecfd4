"""`l2g tables`: rows of the paper beside the scores of runs."""

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
    """A run with two evaluations, an undefined score and a truncated line; beside it a run without `paper`."""
    entries = [
        {"iteration": 4, "segm/AP": 1.0},
        {"iteration": 9, "segm/AP": 33.0, "segm/AP50": -1.0},
        {"iteration": 10, "total_loss": 3.0},
    ]
    make_run(tmp_path / "output/one", "{table: 3, row: baseline, dataset: OVIS, AP: 31.6}", entries)
    make_run(tmp_path / "output/none", "null", [])
    return read_runs([tmp_path / "output"])


def test_scores_of_a_run_are_those_of_its_last_evaluation(runs):
    (run,) = runs
    assert run.names == (3, "baseline", "OVIS")
    assert run.scores == {"AP": 33.0}
    assert run.facts == {"iterations": 10, "commit": "abcdef0123456789", "hardware": "4 x V100"}


def test_a_run_follows_its_row_with_the_difference_from_the_paper(runs):
    text = as_markdown(build_table(ROWS, runs))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[2].startswith("| baseline | OVIS | paper | 31.6 | 54.7 | - |")
    assert (
        f"| baseline | OVIS | {runs[0].folder} | 33.0 (+1.4) | - | 10 | abcdef0123 | 4 x V100 |" in lines[3]
    )
    assert lines[4].startswith("| + aligner | OVIS | paper | 36.2 | 63.2 |")


def test_csv_and_markdown_hold_the_same_lines(runs, tmp_path):
    lines = build_table(ROWS, runs)
    head, *body = as_csv(lines).splitlines()
    assert head.startswith("table,row,dataset,source,AP,AP50")
    assert body[1].startswith(f"3,baseline,OVIS,{runs[0].folder},33.0,,")
    write_table(tmp_path / "t.csv", lines)
    assert (tmp_path / "t.csv").read_text() == as_csv(lines)
    with pytest.raises(UserError, match=r"written as \.md or \.csv"):
        write_table(tmp_path / "t.txt", lines)


def test_unknown_rows_and_missing_folders_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="no config has this row"):
        build_table(ROWS[1:], runs)
    with pytest.raises(UserError, match="no such folder of runs"):
        read_runs([tmp_path / "nowhere"])


def test_two_configs_of_one_row_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text('paper = dict(table=1, row="a", dataset="b", AP=1.0)\n')
    with pytest.raises(UserError, match=r"two\.py: table 1, a, is a row of one\.py too"):
        read_rows(tmp_path)


def test_a_recipe_serves_several_rows_and_its_run_is_listed_below_each(tmp_path):
    """`paper` is the recipe's own row, `paper_also` lists the others; the run names the first only."""
    (tmp_path / "one.py").write_text(
        'paper = dict(table=2, row="full", dataset="b", AP=7.0)\n'
        'paper_also = [dict(paper, table=3, row="+ trajectory", AP=8.0)]\n'
    )
    rows = read_rows(tmp_path)
    assert [(row.names, row.scores) for row in rows] == [
        ((2, "full", "b"), {"AP": 7.0}),
        ((3, "+ trajectory", "b"), {"AP": 8.0}),
    ]
    make_run(tmp_path / "run", "{table: 2, row: full, dataset: b}", [{"iteration": 0, "segm/AP": 9.0}])
    lines = [(line["table"], line["source"], line["AP"]) for line in build_table(rows, read_runs([tmp_path]))]
    run = str(tmp_path / "run")
    assert lines == [(2, "paper", 7.0), (2, run, 9.0), (3, "paper", 8.0), (3, run, 9.0)]
