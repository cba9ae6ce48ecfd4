"""The section `gpu` of the benchmark: its parts on a CPU, and parts that fail or take too long."""

from __future__ import annotations

import time

import bench_gpu
import benchmark
import pytest
import torch
from bench_common import Bench
from bench_gpu import SMALL

BENCH = Bench(quick=True, device=torch.device("cpu"))


def test_a_part_that_fails_or_is_too_slow_is_reported_and_the_next_runs(monkeypatch):
    def failing(bench, size):
        yield {"name": "first"}
        raise ZeroDivisionError("division by zero")

    def slow(bench, size):
        time.sleep(5)
        yield {"name": "never"}

    def fine(bench, size):
        yield {"name": "fine"}

    monkeypatch.setattr(bench_gpu, "PARTS", {"a": (9, failing), "b": (0.05, slow), "c": (9, fine)})
    rows = list(bench_gpu.gpu(BENCH))
    assert [(row["part"], row["name"], row.get("error")) for row in rows] == [
        ("a", "first", None),
        ("a", "a", "ZeroDivisionError: division by zero"),
        ("b", "b", "PartTimeoutError: stopped after 0 s"),
        ("c", "fine", None),
    ]


def test_all_parts_take_at_most_eight_minutes():
    assert sum(seconds for seconds, _ in bench_gpu.PARTS.values()) <= 480


@pytest.mark.parametrize("part", [bench_gpu.kernel, bench_gpu.check, bench_gpu.training])
def test_parts_of_training_agree_at_small_size(part):
    rows = list(part(BENCH, SMALL))
    assert rows
    assert all(row["agree"] for row in rows), rows


def test_the_markdown_table_has_one_line_for_each_row():
    rows = [{"section": "gpu", "name": "x", "agree": True, "ours_s": 0.5, "iterations_per_s": 2.0}]
    head = {"device": "CPU", "versions": {"torch": "2"}, "commit": "abc"}
    first, _, *table = benchmark.markdown(rows, head).splitlines()
    assert first == "CPU, torch 2, commit abc"
    assert table[2] == "| gpu | x |  |  |  | 500.00 ms |  |  |  | yes | 2.00 it/s |"
