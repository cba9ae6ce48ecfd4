"""Where the model looked: hooks read it, change nothing, and are removed."""

from __future__ import annotations

import copy
import json
import zlib
from base64 import b64decode

import pytest
import torch

from fake_run_folder import SIZE, entry, write_folder, write_source
from fake_stream import Fake
from local2global.app.predict import L2G
from local2global.app.report.queries import explain, watched
from local2global.app.report.report import report
from local2global.app.report.run import load, read_run
from local2global.app.video import open_source
from local2global.errors import UserError
from local2global.modeling.memory import ObjectMemory
from local2global.modeling.variants import RememberingTracker


@pytest.fixture(scope="module")
def module(tiny):
    return tiny().eval()


@pytest.fixture
def frames():
    return list(torch.randint(0, 255, (3, 3, *SIZE), dtype=torch.uint8))


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "clip.mp4", 4)


def test_hooks_change_no_prediction_and_are_removed(module, frames):
    plain = [(p.logits, p.masks) for p in module.stream(frames)]
    with watched(module):
        seen = [(p.logits, p.masks) for p in module.stream(frames)]
    torch.testing.assert_close(seen, plain)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_attention_is_a_distribution_over_the_local_queries(module, frames):
    with watched(module) as look:
        next(iter(module.stream(frames)))
    assert len(look.attention) == len(module.tracker.aligner.layers)
    for weights in look.attention:
        assert weights.shape == (6, 6)
        torch.testing.assert_close(weights.sum(1), torch.ones(6))
    x, y, weight = look.points
    torch.testing.assert_close(weight.unflatten(1, (2, -1)).sum(2), torch.ones(6, 2))
    assert x.shape == y.shape == weight.shape
    assert look.padded == (96, 64)


def test_the_page_data_has_every_reported_object(module, source, tmp_path):
    reported = [[entry(0, 0, 0), entry(4, 60, 40)], [entry(0, 0, 0)], [], [entry(4, 60, 40)]]
    run = load(read_run(write_folder(tmp_path / "run", reported, source)))
    data = explain(L2G(module, "cpu"), open_source(source), run)
    frames = json.loads(zlib.decompress(b64decode(data["code"])))
    assert [sorted(frame) for frame in frames] == [["0", "4"], ["0"], [], ["4"]]
    local, points = frames[0]["4"]
    assert len(local) % 5 == 0
    assert 0 < sum(local[4::5]) <= 1000
    assert len(points) == 3 * 24
    assert points[2::3] == sorted(points[2::3], reverse=True)
    assert data["strips"].keys() == {0, 4}


class Backwards(ObjectMemory):
    """Gives the slots the numbers of the objects in reverse."""

    def _assign(self, slots, predictions, histograms):
        none = torch.zeros_like(slots.taken)
        return torch.arange(5, -1, -1)[None], none, none


def test_with_a_memory_an_object_is_looked_up_in_the_slot_that_shows_it(module, source, tmp_path):
    remembering, tracker = copy.deepcopy(module), module.tracker
    parts = (tracker.aligner, tracker.positions, tracker.local_positions, tracker.first_frame)
    remembering.tracker = RememberingTracker(*parts, memory=Backwards()).eval()
    object_1, slot_4 = (
        load(read_run(write_folder(tmp_path / name, [[entry(number, 0, 0)]] * 4, source)))
        for name, number in (("object", 1), ("slot", 4))
    )

    def objects(model, run):
        data = explain(L2G(model, "cpu"), open_source(source), run)
        return [list(frame.values()) for frame in json.loads(zlib.decompress(b64decode(data["code"])))]

    assert objects(remembering, object_1) == objects(module, slot_4)
    assert objects(remembering, object_1) != objects(module, object_1)


def test_a_report_with_queries_has_strips_and_a_legend(module, source, tmp_path):
    folder = write_folder(tmp_path / "run", [[entry(0, 0, 0)]] * 4, source)
    text = report(folder, model=L2G(module, "cpu")).read_text(encoding="utf-8")
    assert 'class="strip"' in text
    assert "Inside the method" in text


def test_other_weights_are_refused(module, source, tmp_path):
    folder = write_folder(tmp_path / "run", [[entry(0, 0, 0)]] * 4, source)
    about = json.loads((folder / "stream.json").read_text())
    about["run"]["model"] = "other"
    (folder / "stream.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="--weights are not those that made this run"):
        report(folder, model=L2G(module, "cpu"))
    assert not (folder / "report.html").exists()


def test_a_model_without_propagation_is_refused():
    with pytest.raises(UserError, match="--queries needs a model with slots"), watched(Fake()):
        pass
