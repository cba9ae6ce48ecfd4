"""The benchmark: order of the arms, comparison of results, memory, output file, and small runs of its sections."""

from __future__ import annotations

import json
import sys
import time

import bench_stream
import bench_training
import benchmark
import pytest
import torch
from bench_common import Bench, environment, mask_difference, models, relative_difference

CPU = torch.device("cpu")
TINY = "configs/demo/l2g_tiny.py"


def timed(monkeypatch, **seconds):
    """A bench whose arms take fixed times, and the list of arms in the order of their calls."""
    calls = []

    def read(self, arm, repeats=1):
        calls.append(arm())
        return seconds[calls[-1]]

    monkeypatch.setattr(Bench, "read", read)
    monkeypatch.setattr(Bench, "_repeats", lambda self, arm: 1)
    return Bench(quick=False, device=CPU), calls


def test_arms_alternate_in_the_order_abba(monkeypatch):
    bench, calls = timed(monkeypatch, ours=1.0, peer=3.0)
    row = bench.compare("frame", "384x640", lambda: "ours", lambda: "peer", 0.0, 0.0)
    assert calls[:4] == ["ours", "peer", "peer", "ours"]
    assert len(calls) == 18
    assert (row["ours_s"], row["peer_s"], row["ratio"], row["iqr"]) == (1.0, 3.0, 3.0, 0.0)
    assert (row["mode"], row["dtype"], row["pass"]) == ("eager", "fp32", "forward")


def test_different_results_do_not_agree(monkeypatch):
    bench, _ = timed(monkeypatch, ours=1.0, peer=1.0)
    row = bench.compare("frame", "x", lambda: "ours", lambda: "peer", 0.2, 0.1, dtype="bf16")
    assert row["agree"] is False
    assert row["dtype"] == "bf16"


def test_differences_by_hand():
    assert relative_difference(torch.tensor([1.0, 8.0]), torch.tensor([3.0, 8.0])) == 0.25
    assert relative_difference(torch.tensor([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)
    a, b = torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool()
    assert mask_difference(a, b) == pytest.approx(2 / 3)
    assert mask_difference(a & ~a, b & ~b) == 0


def test_short_arms_are_repeated_within_a_reading(monkeypatch):
    """An arm of one millisecond runs twenty times, an arm of one second once."""
    bench = Bench(quick=True, device=CPU)
    for seconds, repeats in ((0.001, 20), (1.0, 1)):
        monkeypatch.setattr(Bench, "read", lambda self, arm, seconds=seconds: seconds)
        assert bench._repeats(list) == repeats


def test_a_failing_section_keeps_its_rows_and_reports_the_error(monkeypatch, capsys):
    def run(quick):
        yield {"name": "x", "ratio": 2.0, "agree": True}
        raise RuntimeError("no kernel image")

    module = type(sys)("bench_failing")
    module.run = run
    monkeypatch.setitem(sys.modules, "bench_failing", module)
    monkeypatch.setitem(benchmark.SECTIONS, "data", ("bench_failing", "run"))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "data"])
    assert benchmark.main() == 1
    output = capsys.readouterr()
    assert "2.00" in output.out
    assert "data stopped (RuntimeError: no kernel image)" in output.err


def test_a_misused_option_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "frame", "--threads", "two"])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_section_gpu_runs_on_a_cpu_only_on_request(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu"])
    with pytest.raises(SystemExit):
        benchmark.parse()
    assert "the section gpu needs a GPU: add --device cuda, or --device cpu" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu", "--device", "cpu"])
    assert benchmark.parse().device == "cpu"


def test_all_on_a_gpu_leaves_out_the_sections_of_the_cpu():
    everything = benchmark.select(["all"], CPU)
    assert everything == list(benchmark.SECTIONS)
    assert set(everything) - set(benchmark.select(["all"], torch.device("cuda"))) == benchmark.CPU_ONLY
    assert benchmark.select(["data"], torch.device("cuda")) == ["data"]


def test_every_section_exists():
    for module, function in benchmark.SECTIONS.values():
        assert callable(getattr(__import__(module), function))


def test_the_output_file_names_the_machine(tmp_path):
    row = {"section": "frame", "name": "x", "agree": None}
    benchmark.write(tmp_path / "b.json", environment(CPU), [row])
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["versions"]["torch"] == torch.__version__
    assert {"name", "cores", "capability", "bf16"} == set(content["cpu"])
    assert {"device", "blas", "threads", "load", "commit"} <= set(content)
    assert content["rows"] == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


# --- Sections at small size: the arms agree ---


@pytest.fixture
def small(monkeypatch):
    """The small model for the paper's, one small frame size, and one reading per arm."""

    def tiny(device, queries=100, config=TINY):
        return models(device, 30, TINY)

    def read(self, arm, repeats=1):
        start = time.perf_counter()
        arm()
        return time.perf_counter() - start

    for module in (bench_stream, bench_training):
        monkeypatch.setattr(module, "models", tiny)
    monkeypatch.setattr(bench_stream, "SIZES", ((96, 160),))
    monkeypatch.setattr(bench_stream, "OUTPUT", (192, 320))
    monkeypatch.setattr(Bench, "read", read)
    monkeypatch.setattr(Bench, "rounds", 2)
    monkeypatch.setattr(Bench, "_repeats", lambda self, arm: 1)
    return Bench(quick=True, device=CPU)


KEYS = {"section", "name", "mode", "dtype", "pass", "ours_s", "peer_s", "ratio", "iqr", "agree", "difference"}


def test_attention_agrees_with_grid_sample_forward_and_backward(small):
    rows = list(bench_stream.attention(small))
    assert {(row["name"], row["dtype"], row["pass"]) for row in rows} == {
        (place, dtype, kind)
        for place in ("encoder", "decoder")
        for dtype, kind in (("fp32", "forward"), ("bf16", "forward"), ("fp32", "train"))
    }
    assert all(row["agree"] and set(row) == KEYS for row in rows)


def test_a_frame_agrees_with_the_peer(small):
    rows = list(bench_stream.frame(small))
    assert [row["dtype"] for row in rows] == ["fp32", "bf16"]
    assert rows[0]["agree"], rows[0]
    assert rows[0]["masks"] > 0
    assert set(rows[0]) >= {*KEYS, "masks_unlike", "first_call_s"}


def test_a_training_step_agrees_with_the_peer(small, monkeypatch):
    monkeypatch.setattr(bench_training, "peak_memory", lambda arm, device: 1)  # the profiler takes seconds
    row = bench_training._step_row(small, (96, 160))
    assert row["agree"], row


def test_reduced_supervision_and_the_aligner_are_measured(small, monkeypatch):
    monkeypatch.setattr(bench_training, "SUPERVISED", {2: [False, True, False, True]})
    rows = list(bench_training._part_rows(small, (96, 160)))
    assert [row["agree"] for row in rows] == [None] * 2
    assert rows[0]["ours_bytes"] < rows[0]["peer_bytes"]
    assert "aligner_share" in rows[1]
