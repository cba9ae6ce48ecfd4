"""`l2g export`: the exported step gives the ids and masks of the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from local2global.app import cli
from local2global.app.predict import L2G
from local2global.app.video import VideoWriter, open_source
from local2global.data.generated.shapes import load_shapes
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config, save_resolved
from local2global.modeling.deformable import sample_definition
from local2global.modeling.graph import StepGraph
from local2global.modeling.ops.bags import sample_gathers
from local2global.weights.checkpoint import save_checkpoint

SIZE = (96, 160)
SMALL = [
    f"model.{part}.num_layers=1" for part in ("segmenter.encoder", "segmenter.decoder", "tracker.aligner")
]
TINY = "configs/demo/l2g_tiny.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, root, stirred):
    """The folder of a run whose random model reports objects."""
    cfg = load_config(root / TINY, SMALL)
    torch.manual_seed(2)
    model = stirred(instantiate(cfg.model), scale=0.05)
    model.segmenter.class_embed.bias.data.zero_()
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / "model_final.pth", {"model": model.state_dict()})
    save_resolved(cfg, folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def onnx_file(weights, tmp_path_factory):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs local2global[export]")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "export", path, "--weights", weights, "--size", "96x160") == 0
    return path


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["l2g", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow  # the exporter takes a minute
def test_the_loop_of_the_documentation_gives_the_ids_and_masks_of_the_model(onnx_file, weights, root):
    """100 frames of a generated video, through the code of docs/export.md."""
    folder = onnx_file.parent
    video = load_shapes("demo", 1, seed=2, length=100, size=SIZE).videos[0]
    with VideoWriter(folder / "clip.mp4", 10, SIZE) as writer:
        for t in range(100):
            writer.write(video.frame(t))
    [code] = re.findall(r"```python\n(.*?)```", (root / "docs/export.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    found = {}
    for line in done.stdout.splitlines():
        index, slot, label, score, area = line.split()
        found[int(index), int(slot)] = (label, float(score), int(area))
    without_memory = "model.tracker._target_=local2global.modeling.tracker.Tracker"
    model = L2G.from_pretrained(weights, "cpu", ["model.test_size=[96,160]", without_memory])
    expected = {}
    for frame in model.stream(open_source(folder / "clip.mp4")):
        for i, slot in enumerate(frame.ids.tolist()):
            label = model.classes[int(frame.labels[i])]["name"]
            expected[frame.index, slot] = (label, float(frame.scores[i]), int(frame.masks[i].sum()))
    assert len({index for index, _ in expected}) == 100
    assert found.keys() == expected.keys()
    for key, (label, score, area) in expected.items():
        assert found[key][0] == label, key
        assert found[key][1] == pytest.approx(score, abs=0.0051), key
        assert found[key][2] == pytest.approx(area, rel=0.01, abs=3), key


@pytest.mark.slow  # the exporter takes a minute
def test_the_file_has_no_grid_sample_and_states_classes_and_opset(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    operators = {node.op_type for node in model.graph.node}
    assert "GridSample" not in operators
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert {entry.key: entry.value for entry in model.metadata_props}[
        "classes"
    ] == '["disc", "triangle", "cross"]'


@pytest.mark.slow  # the exporter takes a minute
def test_masks_of_the_file_overlap_those_of_torch(onnx_file, weights):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
    graph = StepGraph(L2G.from_pretrained(weights, "cpu")._module, *SIZE)
    frame, first, *slots = graph.initial.values()
    found = [value.numpy() for value in slots]
    video, worst = load_shapes("demo", 1, seed=3, length=10, size=SIZE).videos[0], 1.0
    for t in range(10):
        frame = video.frame(t)
        inputs = dict(zip(graph.initial, [frame.numpy(), first.numpy(), *found], strict=True))
        scores, masks, *found = session.run(None, inputs)
        with torch.no_grad():
            expected, theirs, *slots = graph(frame, first, *slots)
        first = torch.zeros_like(first)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        ours, theirs = masks > 0, theirs.numpy() > 0
        common, union = (ours & theirs).sum((1, 2)), (ours | theirs).sum((1, 2))
        worst = min(worst, (common[union > 0] / union[union > 0]).min())
    assert worst >= 0.999


@pytest.mark.slow  # the exporter takes a minute
def test_half_files_store_layers_in_float16(onnx_file, weights):
    import onnx

    from local2global.app.export import _compare, _session, _to_half

    half = _to_half(onnx.load(onnx_file))
    kinds = [entry.data_type for entry in half.graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) > 20
    path = onnx_file.with_name("half.onnx")
    onnx.save(half, path)
    assert path.stat().st_size < 0.9 * onnx_file.stat().st_size
    graph = StepGraph(L2G.from_pretrained(weights, "cpu")._module, *SIZE)
    with torch.no_grad():
        assert 1e-6 < _compare(graph, _session(path)) < 0.05


@pytest.mark.slow  # the exporter takes half a minute
@pytest.mark.parametrize("options", [(), ("--half",)])
def test_a_torch_export_file_loads_and_computes_the_step(weights, tmp_path, monkeypatch, options):
    path = tmp_path / "model.pt2"
    assert run(monkeypatch, "export", path, "--weights", weights, "--size", "96x160", *options) == 0
    about = {"metadata.json": ""}
    step = torch.export.load(path, extra_files=about).module()
    assert json.loads(about["metadata.json"])["threshold"] == "0.3"
    graph = StepGraph(L2G.from_pretrained(weights, "cpu")._module, *SIZE)
    with torch.no_grad():
        found, expected = step(*graph.initial.values()), graph(*graph.initial.values())
    torch.testing.assert_close(found[0], expected[0], atol=0.05 if options else 1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_the_step_with_a_flag_equals_the_stream_without_memory(weights):
    model = L2G.from_pretrained(weights, "cpu")._module
    graph = StepGraph(model, 90, 150)
    model.tracker = model.tracker.without_memory()
    video = load_shapes("demo", 1, seed=4, length=3, size=(90, 150)).videos[0]
    _, first, *slots = graph.initial.values()
    with torch.no_grad():
        for t, expected in enumerate(model.stream(video.frame(t) for t in range(3))):
            scores, masks, *slots = graph(video.frame(t), first, *slots)
            first = torch.zeros_like(first)
            torch.testing.assert_close(scores, expected.logits[0].sigmoid())
            assert masks.shape[-2:] == (23, 38)
            torch.testing.assert_close(masks, expected.masks[0, :, :23, :38])


def test_gathers_compute_the_defined_sum():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5), (1, 7), (8, 9))
    points = (2, 19, 4, 3, 4)
    x, y = (torch.rand(points, generator=generator) * 1.4 - 0.2 for _ in "xy")
    values = torch.randn(2, sum(h * w for h, w in shapes), 4, 8, generator=generator)
    weights = torch.rand(points, generator=generator)
    expected = sample_definition(values, shapes, x, y, weights)
    torch.testing.assert_close(sample_gathers(values, shapes, x, y, weights), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.tracker=bypass", "links objects outside of the graph"),
        ("model.tracker.positions=static", "needs positions=trajectory"),
        ("model.tracker.first_frame=unaligned", "an aligned first frame"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(root, override, message):
    with pytest.raises(UserError, match=message):
        StepGraph(instantiate(load_config(root / TINY, [override]).model), *SIZE)


def test_wrong_arguments_are_one_line(weights, tmp_path, monkeypatch, capsys):
    for file, size, message in (
        ("model.onnx", "96", "--size 96: expected HEIGHTxWIDTH"),
        ("model.onnx", "16x99999", "32 to 8192"),
        ("model.zip", "96x160", "expected a .onnx or .pt2 file"),
    ):
        assert run(monkeypatch, "export", tmp_path / file, "--weights", weights, "--size", size) == 1
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(monkeypatch, "export", tmp_path / "m.onnx", "--weights", weights, "--size", "96x160") == 1
    assert "pip install 'local2global[export]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
