"""A recorded step: what is computed ahead, what may be overwritten, and that a stream's results stay what they are.

`Played` stands for a CUDA graph where there is no GPU: its outputs are nothing until it is played, the same memory
afterwards, and it keeps nothing alive.  The lists that it plays are those that a GPU captures.
"""

import contextlib
import copy
import itertools
import types
import weakref

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from local2global.modeling import onednn, products, recording
from local2global.modeling.positions import DynamicLocalPositions, StaticPositions
from local2global.modeling.recording import CudaGraph, Recorder, known_ahead
from local2global.modeling.variants import BypassTracker

VARIANTS = {
    "main": (torch.inference_mode, dict),
    "no aligner, static": (torch.no_grad, lambda: {"aligner": False, "positions": StaticPositions(6, 32)}),
    "dynamic l_pos": (torch.no_grad, lambda: {"local_positions": DynamicLocalPositions()}),
}


class Played:
    """A list of operators with the manners of a CUDA graph."""

    def __init__(self, step, inputs):
        assert not torch.is_autocast_enabled("cpu"), "what was traced has its casts already"
        self._step, self.inputs, self.plays = weakref.ref(step), inputs, 0
        self.outputs = [torch.full_like(one, torch.nan) for one in step(*inputs)]

    @property
    def step(self):
        step = self._step()
        assert step is not None, "what was computed ahead is gone"
        return step

    def __call__(self):
        self.plays += 1
        with torch.autocast("cpu", enabled=False):  # a graph's kernels are chosen for good
            new = self.step(*self.inputs)
        for own, one in zip(self.outputs, new, strict=True):
            own.copy_(one)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """What a CPU computes by operators of its own is computed by torch's."""
    monkeypatch.setattr(onednn, "takes", lambda weight, x: False)
    monkeypatch.setattr(products, "_by_onednn", lambda *given: False)


@pytest.fixture
def recorded(tiny):
    def build(**options):
        model = tiny(**options).eval()
        model.recorder = Recorder(fuse=False, capture=Played)
        return model

    return build


def without(model):
    plain = copy.deepcopy(model)
    plain.recorder = None
    return plain


def equal(one, other):
    for name in ("logits", "boxes", "masks", "extent"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.queries.embed, other.queries.embed)
    assert torch.equal(one.queries.boxes, other.queries.boxes)


def plays(model):
    return [kept.replay.plays for kept in model.recorder._kept.values()]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recorded_stream_is_the_stream(recorded, make_clip, name):
    """All of a stream's results are looked at when it is over: none has been overwritten."""
    mode, options = VARIANTS[name]
    model, frames = recorded(**options()), make_clip([[1, 1, 1, 1]], size=(60, 90)).frames
    with mode():
        found = list(model.stream(frames))
        assert all(one.logits.isfinite().all() for one in found)
        for one, other in zip(found, without(model).stream(frames), strict=True):
            equal(one, other)
    assert plays(model) == [3]


def test_two_streams_of_two_sizes_through_one_recorder_do_not_meet(recorded, make_clip):
    model = recorded()
    clips = [
        make_clip([[1, 1, 1]], size=size, seed=i) for i, size in enumerate(((64, 96), (64, 96), (96, 64)))
    ]
    together = zip(*(model.stream(clip.frames) for clip in clips), strict=True)
    apart = zip(*(without(model).stream(clip.frames) for clip in clips), strict=True)
    for found, wanted in itertools.zip_longest(list(together), apart):
        for one, other in zip(found, wanted, strict=True):
            equal(one, other)
    assert sorted(plays(model)) == [2, 4]


def test_identities_matched_on_the_host_are_matched_behind_the_recording(recorded, make_clip):
    model, frames = recorded(), make_clip([[1, 1, 1, 1]]).frames
    model.tracker = BypassTracker()
    for one, other in zip(model.stream(frames), without(model).stream(frames), strict=True):
        equal(one, other)
    assert plays(model) == [3]


def small():
    """A module, its recorder, and a call of it that is recorded."""
    module, recorder = nn.Linear(3, 2), Recorder(fuse=False, capture=Played)

    def call(x):
        (out,) = recorder(module, lambda given: (module(given) * 2,), (x,))
        assert torch.equal(out, module(x) * 2)
        return [kept.replay.plays for kept in recorder._kept.values()]

    return module, recorder, call


class _TwoGpus:
    """Stands for `torch.cuda`, and says on whose stream a step is called."""

    CUDAGraph = object

    def __init__(self):
        self.here, self.called = "cuda:0", []
        self.stream_now = self._captures_first = self.Stream()

    def Stream(self):  # noqa: N802 - torch's name
        return types.SimpleNamespace(of=self.here, wait_stream=lambda other: None)

    def current_stream(self):
        return self.stream_now

    @contextlib.contextmanager
    def device(self, device):
        before, self.here = self.here, device
        yield
        self.here = before

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def graph(self, graph, stream=None, capture_error_mode="global"):
        assert capture_error_mode == "thread_local"
        return self.stream(stream or self._captures_first)


def test_a_step_of_the_second_gpu_is_captured_on_it(monkeypatch):
    cuda = _TwoGpus()
    monkeypatch.setattr(torch, "cuda", cuda)
    graph = CudaGraph(
        lambda given: cuda.called.append(cuda.stream_now.of) or [given],
        [types.SimpleNamespace(device="cuda:1")],
    )
    assert cuda.called == ["cuda:1"] * (recording.WARM_UPS + 1)
    assert graph.outputs == graph.inputs


@torch.no_grad()
def test_a_recording_is_of_one_precision():
    _, _, call = small()
    for _ in range(2):
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                plays = call(torch.randn(4, 3))
    assert plays == [2, 2]


@torch.no_grad()
def test_weights_that_are_written_loaded_or_moved_are_recorded_anew():
    module, _, call = small()
    assert [call(torch.ones(1, 3)) for _ in range(2)] == [[1], [2]]
    module.weight[0, 0] = 5.0
    assert call(torch.ones(1, 3)) == [1]
    module.load_state_dict(nn.Linear(3, 2).state_dict())
    assert call(torch.ones(1, 3)) == [1]
    module.double()
    assert call(torch.ones(1, 3).double()) == [1]


@torch.no_grad()
def test_only_the_last_sizes_are_kept(monkeypatch):
    monkeypatch.setattr(recording, "SIZES_KEPT", 2)
    _, recorder, call = small()
    for rows in (1, 2, 1, 3):
        plays = call(torch.randn(rows, 3))
    assert plays == [2, 1]
    assert [key[1][0][0] for key in recorder._kept] == [1, 3]


@torch.no_grad()
def test_a_copy_begins_without_recordings(recorded):
    _, recorder, call = small()
    call(torch.randn(1, 3))
    copied = copy.deepcopy(recorder)
    assert (copied.fuse, copied.capture) == (False, Played)
    assert not copied._kept
    model = recorded()
    assert set(copy.deepcopy(model).state_dict()) == set(without(model).state_dict())


def test_training_and_gradients_know_nothing_of_it(recorded, make_clip):
    model, clip = recorded(), make_clip()
    past = next(model.stream(clip.frames)).queries
    assert model.advance(clip.frames[1], past).logits.requires_grad
    with torch.no_grad():
        assert model.train().advance(clip.frames[1], past).layers
    assert not model.recorder._kept


class _OnOneDevice(TorchDispatchMode):
    """Fails where a tensor of another device is read or made, were it only a number's."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, out)):
            assert not torch.is_tensor(one) or one.is_meta, function
        return out


@torch.no_grad()
def test_nothing_is_sent_or_asked_for_while_a_recording_runs(recorded, make_clip, monkeypatch):
    """A CUDA graph could not capture it.  Meta tensors have no values: whoever asks for one fails."""
    # meta has no autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: False)
    model = recorded().to("meta")
    list(model.stream(make_clip([[1, 1]]).frames))
    (played,) = (kept.replay for kept in model.recorder._kept.values())
    with _OnOneDevice():
        played.step(*played.inputs)
    # levels, anchors and position embeddings were there before the frame
    assert not [node for node in played.step.graph.nodes if "arange" in str(node.target)]


def test_what_no_input_decides_is_computed_once():
    weight = torch.tensor([1.0, 2.0])

    def step(x):
        doubled = weight * 2
        return x + doubled, doubled.sum()

    rest = known_ahead(make_fx(step)(torch.zeros(2)))
    calls = [str(node.target) for node in rest.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.add.Tensor"]
    total, known = rest(torch.tensor([10.0, 20.0]))
    assert (total.tolist(), known.item()) == ([12.0, 24.0], 6.0)
