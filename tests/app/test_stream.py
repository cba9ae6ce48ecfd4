"""`Stream`: state, threads, errors; and `prefetch`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fake_stream import Fake
from local2global.app.predict import L2G
from local2global.app.stream import prefetch
from local2global.errors import UserError
from local2global.lazy import instantiate, load_config
from local2global.structures import FrameResult

TINY = Path(__file__).parents[2] / "configs" / "common" / "models" / "l2g_tiny.py"


@pytest.fixture(scope="module")
def model() -> L2G:
    torch.manual_seed(0)
    settings = ["model.test_size=[64,96]", "model.threshold=0.0"]
    return L2G(instantiate(load_config(TINY, settings).model), "cpu")


def video(seed: int, length: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length, 3, 64, 96), dtype=torch.uint8, generator=generator)


def assert_equal(ours: list[FrameResult], others: list[FrameResult]) -> None:
    for a, b in zip(ours, others, strict=True):
        assert a.index == b.index
        for name in ("ids", "labels", "scores", "masks", "boxes"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


# --- State ---


def test_a_restored_stream_continues_bit_for_bit(model, tmp_path):
    """The state goes through a file, and later steps of the first stream do not change it."""
    frames = video(0)
    stream = model.start((64, 96))
    whole = [stream.step(frame) for frame in frames[:3]]
    state = stream.state()
    whole += [stream.step(frame) for frame in frames[3:]]
    assert any(len(result.ids) for result in whole)
    save_file(state, tmp_path / "state.safetensors")
    restored = model.start((64, 96))
    restored.load_state(load_file(tmp_path / "state.safetensors"))
    assert_equal([restored.step(frame) for frame in frames[3:]], whole[3:])
    fresh = model.start((64, 96)).step(frames[3])
    assert not torch.equal(fresh.scores, whole[3].scores), "frame 3 depends on the state"


def test_the_state_before_the_first_frame_is_a_start(model):
    stream = model.start((64, 96))
    stream.load_state(model.start((64, 96)).state())
    assert_equal([stream.step(video(0)[0])], [model.start((64, 96)).step(video(0)[0])])


def test_the_label_of_an_object_depends_on_the_frames_before_the_restart(model):
    stream = model.start((64, 96))
    for frame in video(1, 3):
        stream.step(frame)
    state = stream.state()
    flipped = {**state, "total": state["total"].flip(0) * 1e6}
    assert int(state["length"]) == 3
    stream.load_state(flipped)
    assert torch.equal(stream.state()["total"], flipped["total"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "length"}, "'length'"),
        (lambda s: {k: v for k, v in s.items() if k != "slots.boxes"}, "unknown slots: embed"),
        (lambda s: {**s, "slots.extra": s["slots.boxes"]}, "unknown slots: boxes, embed, extra"),
        (lambda s: {**s, "total": torch.zeros(12, 80, dtype=torch.float64)}, "80 classes, the model has 1"),
        (lambda s: {**s, "total": s["total"].float()}, "float64"),
    ],
)
def test_another_state_is_refused(model, change, problem):
    stream = model.start((64, 96))
    stream.step(video(0)[0])
    with pytest.raises(UserError, match=f"not the state of a stream of this model .*{problem}"):
        stream.load_state(change(stream.state()))


def test_streams_of_one_model_in_threads_equal_streams_one_after_the_other(model):
    def run(seed: int) -> list[FrameResult]:
        return list(model.stream(video(seed)))

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for ours, others in zip(together, alone, strict=True):
        assert_equal(ours, others)


def test_a_frame_of_another_size_is_refused():
    model = L2G(Fake(), "cpu")
    frames = [torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(3, 96, 64, dtype=torch.uint8)]
    results = model.stream(frames)
    next(results)
    with pytest.raises(UserError, match=r"frame 1: shape \(3, 96, 64\), expected \(3, 64, 96\)"):
        next(results)


# --- Prefetching ---


def test_prefetching_is_bounded_and_stops_with_the_consumer():
    read, closed = [], []

    def numbers():
        try:
            for i in range(10**9):
                read.append(i)
                yield i
        finally:
            closed.append(True)

    ahead = prefetch(numbers(), 4)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    assert len(read) <= 3 + 4 + 1, "three consumed, four prefetched"
    ahead.close()
    assert closed == [True]
    assert not any(t.name == "l2g-decode" for t in threading.enumerate())


def test_prefetching_keeps_the_order():
    assert list(prefetch(iter(range(50)), 2)) == list(range(50))


def test_an_exception_is_raised_at_the_position_of_its_item():
    def two_then_error():
        yield 1
        yield 2
        raise UserError("frame 2 is broken")

    ahead = prefetch(two_then_error(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(UserError, match="frame 2 is broken"):
        next(ahead)


def test_a_stalled_iterator_does_not_block_the_consumer(monkeypatch):
    """As with a camera that delivers no more frames: closing abandons the thread."""
    monkeypatch.setattr("local2global.app.stream._PATIENCE", 0.05)
    resume = threading.Event()

    def stalled():
        yield 0
        resume.wait(60)

    ahead = prefetch(stalled(), 2)
    assert next(ahead) == 0
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 5
    resume.set()
