"""`--ray` while actors and nodes are killed: every video once, whole, and equal to that of one process."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from fake_workers import assert_same, write_clip, write_run
from local2global.app.cluster import predict as driver
from local2global.app.predict import L2G

ray = pytest.importorskip("ray", reason="--ray is tested with Ray: pip install -e '.[cluster]'")

VIDEOS, KILLS, NODES = 60, 20, 3


@pytest.fixture
def nodes(monkeypatch):
    """A Ray cluster of processes: a head without workers, and nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "projects"))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(NODES):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def actors(cluster) -> list[int]:
    """Process ids of the actors on all nodes."""
    raylets = {
        str(process.process.pid) for node in cluster.worker_nodes for process in node.all_processes["raylet"]
    }
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"ray::VideoWorker"):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(entry.name)] if parent in raylets else []
        except OSError:
            continue
    return sorted(found)


@pytest.mark.slow
def test_every_video_is_whole_after_twenty_kills(nodes, tmp_path, monkeypatch):
    """After 20 random videos of 60, a random actor is killed, or in a third of the cases a whole node."""
    draws, run = random.Random(0), write_run(tmp_path)
    for number in range(VIDEOS):
        write_clip(tmp_path / "in" / f"v{number:02}.mp4", 3 + number % 6, number)
    moments = set(draws.sample(range(1, VIDEOS - 2), KILLS))
    killed: Counter[str] = Counter()
    report = driver._Display.report

    def deadly(self, state, entry):
        report(self, state, entry)
        if sum(tally.videos for tally in self._tallies.values()) not in moments:
            return
        victims = actors(nodes)
        if victims and draws.random() > 1 / 3:
            os.kill(draws.choice(victims), signal.SIGKILL)
            killed["actor"] += 1
        else:
            nodes.remove_node(draws.choice(sorted(nodes.worker_nodes, key=id)), allow_graceful=False)
            nodes.add_node(wait=False, num_cpus=1)
            killed["node"] += 1

    monkeypatch.setattr(driver._Display, "report", deadly)
    settings = driver.Settings(str(tmp_path / "out"), str(run), "cpu")
    driver.predict_videos([f"{tmp_path}/in/*.mp4"], settings, "auto", NODES)
    print(f"killed: {dict(killed)}")  # noqa: T201 - `make kills` shows it
    assert sum(killed.values()) == KILLS
    assert killed["node"] > 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == [f"v{number:02}" for number in range(VIDEOS)]
    assert {line["status"] for line in lines} == {"done"}
    assert len(list((tmp_path / "out").iterdir())) == VIDEOS + 1
    model = L2G.from_pretrained(run, "cpu")
    for line in lines:
        alone = model.predict(line["input"], tmp_path / "alone").folder
        assert_same(tmp_path / "out" / line["name"], alone)
