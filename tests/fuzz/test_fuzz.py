"""Every input is read or refused in one line, within 10 seconds, with no effect outside the output folder.

`make test` runs a fixed slice: the same inputs alone and after other tests.  `make fuzz` (L2G_FUZZ_SECONDS=600) runs
further inputs for as long.  Every failure is reported with the files that caused it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import CONSTANTS_CACHE, HypothesisProvider
from hypothesis.internal.constants_ast import Constants

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import seeds  # noqa: E402
from strategies import strategies  # noqa: E402
from watched import Outcome, Worker  # noqa: E402

#: Inputs of each target in `make test`: about 30 seconds in all.
SLICE = {"weights_config": 15, "eval_config": 15, "overrides": 30, "video": 60}
DEFAULT = 80
BUDGET = float(os.environ.get("L2G_FUZZ_SECONDS") or 0)
NAMES = ["youtube_vis", "coco", "vipseg", "panoptic_png", "panoptic_results", "tracks_truth", "tracks_results", "rle",
         "yaml_config", "eval_config", "weights_config", "overrides", "checkpoint", "image", "video",
         "record"]  # fmt: skip


def write_model(static: Path) -> None:
    """A run's config.yaml and weights, of a small model."""
    import real_run
    from local2global.lazy import instantiate, load_config, save_resolved
    from local2global.weights.checkpoint import save_checkpoint

    cfg = real_run.config("output/run")  # a yaml config writes to the working directory only
    full = load_config(real_run.CONFIG)
    full.dataloader.test.dataset.update(num_videos=1, length=2)
    cfg.dataloader = {"test": full.dataloader.test, "evaluator": full.dataloader.evaluator}
    save_resolved(cfg, static / "eval.yaml")
    del cfg.dataloader
    save_resolved(cfg, static / "config.yaml")
    torch.manual_seed(0)
    save_checkpoint(static / "weights.pth", {"model": instantiate(cfg.model).state_dict()})


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("fuzz")
    (scratch / "static").mkdir()
    seeds.write_static(scratch / "static")
    write_model(scratch / "static")
    process = Worker(scratch)
    yield process
    process.close()


@pytest.fixture(scope="module")
def inputs(worker):
    made = strategies(worker.scratch / "static")
    assert sorted(made) == sorted(NAMES)
    return made


@pytest.fixture(scope="module")
def tally():
    """Counts of outcomes by target; printed by `make fuzz`."""
    counts: dict[str, Counter[str]] = {}
    yield counts
    if BUDGET:
        total = sum(counts.values(), Counter())
        rows = [*counts.items(), ("all", total)]
        kinds = ("read", "refused", "fault", "hang", "crash", "outside")
        lines = [("target", *kinds), *((name, *(row[kind] for kind in kinds)) for name, row in rows)]
        sys.stdout.writelines("\n" + "  ".join(f"{cell!s:>16}" for cell in line) for line in lines)


def run(strategy, check, number, examples):
    """Check examples of a strategy, which the seed `number` selects."""
    options = dict(phases=[Phase.generate], database=None, deadline=None)
    limits = settings(max_examples=examples, suppress_health_check=list(HealthCheck), **options)
    seed(number)(limits(given(strategy)(check)))()


@contextlib.contextmanager
def without_local_constants():
    """Draws do not depend on the modules that are loaded, whose constants Hypothesis mixes into them."""
    CONSTANTS_CACHE.cache.clear()
    with patch.object(HypothesisProvider, "_local_constants", Constants()):
        yield
    CONSTANTS_CACHE.cache.clear()


def test_slice_does_not_depend_on_loaded_modules(tmp_path, monkeypatch):
    """Only addresses in pickles of torch differ from run to run."""

    def draws():
        drawn = []
        with without_local_constants():
            run(st.integers(), lambda value: drawn.append(value), 0, 200)
        return drawn

    before = draws()
    (tmp_path / "full_of_constants.py").write_text(f"x = {[7**n for n in range(40)]}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("full_of_constants")
    assert draws() == before


def test_unchanged_inputs_are_read(worker):
    """The inputs that the strategies change: otherwise all changes would be refused for another reason."""
    static = worker.scratch / "static"
    truth, panoptic = static / "ytvis" / "truth.json", static / "vipseg" / "panoptic_gt_VIPSeg_val.json"
    model = {"config.yaml": static / "config.yaml", "weights.pth": static / "weights.pth"}
    several = {"image": seeds.images(), "video": seeds.videos(), "checkpoint": seeds.checkpoints()}
    inputs = [(target, {name: data}) for target, files in several.items() for name, data in files.items()]
    inputs += [
        ("youtube_vis", {"annotations.json": truth}),
        ("coco", {"annotations.json": static / "coco" / "truth.json"}),
        ("vipseg", {"annotations.json": panoptic}),
        ("panoptic_results", {"pred.json": panoptic}),
        ("panoptic_results", {"pred.json": panoptic, "maps.npz": seeds.maps(static)}),
        ("tracks_truth", {"truth.json": truth}),
        ("tracks_results", {"results.json": static / "results.json"}),
        ("tracks_results", {"r.zip": seeds.zipped("results.json", (static / "results.json").read_bytes())}),
        ("yaml_config", {"config.yaml": static / "config.yaml"}),
        ("weights_config", model),
        ("eval_config", {"config.yaml": static / "eval.yaml"}),
        ("overrides", {"overrides.json": b'["train.max_iter=3", "model.threshold=0.5"]'}),
        ("record", seeds.record(static)),
    ]
    refused = [
        (target, *files, outcome)
        for target, files in inputs
        if (outcome := worker.run(target, files)).kind != "read"
    ]
    assert refused == []


@pytest.mark.parametrize("target", NAMES)
def test_every_input_is_read_or_refused(target, worker, inputs, tally, tmp_path):
    failures: dict[str, Outcome] = {}
    counts = tally[target] = Counter()
    stop = time.monotonic() + BUDGET / len(NAMES)

    def check(files):
        if round_number and time.monotonic() > stop:
            return
        outcome = worker.run(target, files)
        counts[outcome.kind] += 1
        counts["outside"] += bool(outcome.outside)
        name = outcome.where or ", ".join(outcome.outside)
        if not outcome.sound and name not in failures:
            failures[name] = outcome
            shutil.copytree(worker.scratch / "input", tmp_path / f"failure{len(failures)}", symlinks=True)

    round_number = 0
    with without_local_constants():
        run(inputs[target], check, round_number, SLICE.get(target, DEFAULT))
    while BUDGET and time.monotonic() < stop:
        round_number += 1
        run(inputs[target], check, round_number, 200)
    lines = [f"{outcome.kind}: {name}: {outcome.message}" for name, outcome in failures.items()]
    if failures:
        pytest.fail("\n".join([f"the inputs are in {tmp_path}", *lines]), pytrace=False)
    assert counts["refused"] > 0, "no input was invalid: the target does not read it"
