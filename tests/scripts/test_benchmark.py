"""The benchmark's own arithmetic: what alternates, what is compared, what memory an arm takes, what is written."""

from __future__ import annotations

import json
import sys

import benchmark
import pytest
import torch
from bench_measure import Bench, apart, disagreement, peak_memory, surroundings

CPU = torch.device("cpu")


def timed(monkeypatch, **seconds):
    """A bench whose arms take given times; returns it and the list of turns."""
    turns = []

    def read(self, arm, repeats=1):
        turns.append(arm())
        return seconds[turns[-1]]

    monkeypatch.setattr(Bench, "read", read)
    monkeypatch.setattr(Bench, "_repeats", lambda self, arm: 1)
    return Bench(quick=False, device=CPU), turns


def test_arms_take_turns_and_swap_places(monkeypatch):
    bench, turns = timed(monkeypatch, ours=1.0, peer=3.0)
    row = bench.compare("frame", "384x640", lambda: "ours", lambda: "peer", 0.0, 0.0)
    assert turns[:4] == ["ours", "peer", "peer", "ours"]
    assert len(turns) == 18
    assert (row["ours_s"], row["peer_s"], row["ratio"], row["iqr"]) == (1.0, 3.0, 3.0, 0.0)
    assert (row["mode"], row["dtype"], row["pass"]) == ("eager", "fp32", "forward")


def test_results_that_differ_do_not_agree(monkeypatch):
    bench, _ = timed(monkeypatch, ours=1.0, peer=1.0)
    row = bench.compare("frame", "x", lambda: "ours", lambda: "peer", 0.2, 0.1, dtype="bf16")
    assert row["agree"] is False
    assert row["dtype"] == "bf16"


def test_differences_by_hand():
    assert apart(torch.tensor([1.0, 8.0]), torch.tensor([3.0, 8.0])) == 0.25
    assert apart(torch.tensor([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)
    one, other = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool()
    assert disagreement(one, other) == pytest.approx(2 / 3)
    assert disagreement(one & ~one, other & ~other) == 0


def test_peak_memory_is_what_an_arm_takes_even_if_it_lets_it_go():
    kept = []

    def arm():
        first = torch.ones(1 << 20)
        second = first + 1
        del first  # 4 MiB, which the third takes anew
        kept.append(second * 2)

    for _ in range(2):
        assert 8 << 20 <= peak_memory(arm, CPU) < (8 << 20) + 1000


def test_a_missing_section_is_a_word_and_no_rows(monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SECTIONS, "data", ("bench_nowhere", "run"))
    assert benchmark.measure("data", Bench(quick=True, device=CPU)) == []
    assert "bench_nowhere.py" in capsys.readouterr().err


def test_a_section_that_stops_keeps_its_rows_and_says_why(monkeypatch, capsys):
    def run(quick):
        yield {"name": "x", "ratio": 2.0, "agree": True}
        raise RuntimeError("no kernel image")

    made = type(sys)("bench_made")
    made.run = run
    monkeypatch.setitem(sys.modules, "bench_made", made)
    monkeypatch.setitem(benchmark.SECTIONS, "data", ("bench_made", "run"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "data"])
    assert benchmark.main() == 1
    said = capsys.readouterr()
    assert "2.00" in said.out
    assert "data (RuntimeError: no kernel image)" in said.err


def test_all_on_a_gpu_is_what_uses_it():
    everything = benchmark.sections_of(["all"], CPU)
    assert everything == list(benchmark.SECTIONS)
    assert set(everything) - set(benchmark.sections_of(["all"], torch.device("cuda"))) == {
        "data",
        "scorer",
    }
    assert benchmark.sections_of(["scorer"], torch.device("cuda")) == ["scorer"]


def test_a_section_may_give_its_two_quartiles(monkeypatch):
    made = type(sys)("bench_made")
    made.run = lambda quick: [{"name": "x", "ratio": 2.0, "iqr": (1.5, 2.25), "agree": True}]
    monkeypatch.setitem(sys.modules, "bench_made", made)
    monkeypatch.setitem(benchmark.SECTIONS, "data", ("bench_made", "run"))
    (row,) = benchmark.measure("data", Bench(quick=True, device=CPU))
    assert (row["section"], row["iqr"]) == ("data", 0.75)


def test_the_file_holds_what_a_number_means_nothing_without(tmp_path):
    row = {"section": "frame", "name": "x", "agree": None}
    benchmark.write(tmp_path / "b.json", surroundings(CPU), [row])
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found) == {"versions", "device", "threads", "load", "commit", "rows"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["rows"] == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_short_arms_are_repeated_within_a_reading(monkeypatch):
    """Twenty times a millisecond; a second's arm once."""
    bench = Bench(quick=True, device=CPU)
    for seconds, repeats in ((0.001, 20), (1.0, 1)):
        monkeypatch.setattr(Bench, "read", lambda self, arm, seconds=seconds: seconds)
        assert bench._repeats(list) == repeats
