"""`--ray` on a small cluster of this machine: retries, dead actors, and results equal to those of one process."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from local2global.app import cli
from local2global.app.cluster import pool as module
from local2global.app.cluster import predict as driver
from local2global.app.cluster.pool import Pool
from local2global.app.predict import L2G
from local2global.app.video import open_source
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.weights.checkpoint import save_checkpoint

ray = pytest.importorskip("ray", reason="--ray is tested with Ray: pip install -e '.[cluster]'")

import fake_workers  # noqa: E402

# The module is not importable where the actors run.
ray.cloudpickle.register_pickle_by_value(fake_workers)

ROOT = Path(__file__).parents[2]
ONE_CPU = {"num_cpus": 1}


@pytest.fixture(scope="module")
def cluster():
    """One Ray session for all tests: a local one, or the cluster that L2G_RAY names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", str(ROOT / "projects"))
        with module.connected(os.environ.get("L2G_RAY", "local"), 3):
            yield


@pytest.fixture
def quick(monkeypatch):
    """Short pauses between attempts."""
    monkeypatch.setattr(module, "PAUSE", 0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run of the tiny model with random weights."""
    return fake_workers.write_run(tmp_path_factory.mktemp("run"))


def command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def work(folder: Path, tasks, count: int = 1) -> dict:
    with Pool(fake_workers.Worker, [folder], count, ONE_CPU) as pool:
        return dict(pool.run("work", tasks))


def test_failed_tasks_are_repeated_and_poison_is_set_aside(cluster, quick, tmp_path):
    results = work(tmp_path, ["fails twice", "poison", "fine", "dies once", "always dies"])
    assert results["fine"] == "fine, attempt 1"
    assert results["fails twice"] == "fails twice, attempt 3"
    assert results["dies once"] == "dies once, attempt 2"
    assert isinstance(results["poison"], UserError)
    assert str(results["poison"]) == "no video stream in this file"
    assert str(results["always dies"]).startswith("its worker died")
    log = (tmp_path / "log").read_text().splitlines()
    assert log.count("poison") == 1, "a file that is no video is not read again"
    assert log.count("always dies") == module.ATTEMPTS


def test_a_long_list_is_read_as_the_actors_get_free(cluster, tmp_path):
    read = []

    def tasks():
        for number in range(20):
            read.append(number)
            yield f"task {number}"

    with Pool(fake_workers.Worker, [tmp_path], 1, ONE_CPU) as pool:
        for done, _ in enumerate(pool.run("work", tasks()), 1):
            assert len(read) <= done + 2, "the task that runs, and the next"
    assert len(read) == 20


def test_a_worker_that_cannot_load_ends_the_run_with_its_line(cluster, tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match=r"^weights.pth: no such weights$"):
        work(tmp_path, ["fine"])


def test_predict_on_ray_equals_one_process_and_sets_poison_aside(cluster, run, tmp_path, monkeypatch, capsys):
    """Two folders with equal names; the longest video is predicted first."""
    paths = [
        fake_workers.write_clip(tmp_path / "in" / place / "clip.mp4", n, n)
        for place, n in (("a", 3), ("b", 7))
    ]
    (tmp_path / "in" / "a" / "broken.mp4").write_bytes(b"no video" * 99)
    out = tmp_path / "out"
    arguments = ["predict", tmp_path / "in" / "**" / "*.mp4", "--weights", run, "--device", "cpu"]
    assert command(monkeypatch, *arguments, "--output", out, "--ray", "auto", "--workers", 1) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "l2g: 1 of 3 videos failed"
    assert "broken: " in said.err
    assert "manifest.jsonl" in said.out
    model = L2G.from_pretrained(run, "cpu")
    for name, path in zip(("clip", "clip-2"), paths, strict=True):
        alone = model.predict(replace(open_source(path), name=name), tmp_path / "alone").folder
        fake_workers.assert_same(out / name, alone)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [(line["name"], line["status"]) for line in lines] == [
        ("clip-2", "done"),
        ("clip", "done"),
        ("broken", "failed"),
    ]
    assert sorted(path.name for path in out.iterdir()) == ["clip", "clip-2", "manifest.jsonl"]


def test_eval_on_ray_has_the_scores_of_one_process(cluster, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.pth"
    config = load_config(ROOT / "configs" / "demo" / "l2g_tiny.py")
    torch.manual_seed(0)
    save_checkpoint(weights, {"model": instantiate(config.model).state_dict()})
    arguments = ["eval", "demo/l2g_tiny.py", "--weights", weights, "train.device=cpu"]
    arguments += ["dataloader.test.dataset.num_videos=2", "dataloader.test.short_edge=64"]
    tables = []
    for place, options in (("one", []), ("ray", ["--ray", "auto", "--workers", 1])):
        assert command(monkeypatch, *arguments, f"train.output_dir={tmp_path / place}", *options) == 0
        lines = capsys.readouterr().out.splitlines()  # the width of a column depends on the measured times
        tables.append([[cell.strip() for cell in line.split("│")] for line in lines if "segm" in line])
    assert tables[0] == tables[1] != []
    assert len(json.loads((tmp_path / "one" / "results.json").read_text())) > 0
    assert (tmp_path / "one" / "results.json").read_bytes() == (
        tmp_path / "ray" / "results.json"
    ).read_bytes()


def test_an_interrupt_leaves_whole_folders_and_a_manifest_of_them(
    cluster, run, tmp_path, monkeypatch, capsys
):
    """Ctrl-C after the first video; the second runs at that time."""
    for name, frames in (("long", 40), ("short", 2)):
        fake_workers.write_clip(tmp_path / "in" / f"{name}.mp4", frames, frames)
    monkeypatch.setattr(
        driver, "_chunks", lambda jobs: iter([[job] for job in sorted(jobs, key=lambda job: job.name)])
    )
    report = driver._Display.report

    def interrupted(self, state, entry):
        report(self, state, entry)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver._Display, "report", interrupted)
    arguments = ["predict", tmp_path / "in" / "*.mp4", "--weights", run, "--device", "cpu"]
    arguments += ["--output", tmp_path / "out", "--ray", "auto", "--workers", 2]
    assert command(monkeypatch, *arguments) == 130
    (name,) = [
        json.loads(line)["name"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["manifest.jsonl", name])
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "l2g: interrupted: 1 of 2 videos are done; the same command does the rest"
    assert all("to inspect" in line for line in said[:-1]), "a line per minute on a slow machine"


@pytest.mark.slow
def test_the_memory_of_the_driver_does_not_grow_with_the_results(cluster, tmp_path, monkeypatch):
    """30,000 videos that need no time; between the first and the last thousand the driver grows by less than 8 MB."""
    monkeypatch.setattr(driver, "VideoWorker", fake_workers.Idle)
    seen = []
    add = driver.Manifest.add

    def measured(self, entry):
        seen.append(resident() if len(seen) % 1000 == 0 else 0)
        add(self, entry)

    monkeypatch.setattr(driver.Manifest, "add", measured)
    (tmp_path / "in").mkdir()
    for number in range(30_000):
        (tmp_path / "in" / f"video-{number:06}.mp4").touch()
    settings = driver.Settings(str(tmp_path / "out"), "run")
    driver.predict_videos([f"{tmp_path}/in/*.mp4"], settings, "auto", 2)
    assert len(seen) == 30_000
    assert seen[29_000] - seen[1000] < 8e6


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
