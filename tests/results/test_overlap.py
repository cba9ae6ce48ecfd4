"""`one_behind`: order, streams and errors, with a fake `torch.cuda`."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from local2global.results.overlap import one_behind


class FakeCuda:
    """Records what is enqueued and on which stream."""

    def __init__(self):
        self.log, self.active = [], "main"

    def Stream(self, device):  # noqa: N802 - torch's name
        return types.SimpleNamespace(wait_event=lambda event: self.log.append(("wait", event.of)))

    def Event(self):  # noqa: N802
        event = types.SimpleNamespace(of=None)
        event.record = lambda stream: setattr(event, "of", self.log[-1][1])
        return event

    def current_stream(self, device):
        return "main"

    @contextlib.contextmanager
    def stream(self, stream):
        self.active = "side"
        yield
        self.active = "main"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_on_a_gpu_a_frame_is_processed_while_the_next_is_computed(monkeypatch, count):
    """Each frame waits for its own step only; all results are yielded in order."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)

    def steps():
        for t in range(count):
            assert cuda.active == "main"
            cuda.log.append(("step", t))
            yield t

    def take(t):
        assert cuda.active == "side"
        cuda.log.append(("take", t))
        return 10 * t

    assert list(one_behind(steps(), take, torch.device("cuda"))) == [10 * t for t in range(count)]
    order = [("step", t) for t in range(count)]
    expected = order[:1]
    for t in range(count):
        expected += [*order[t + 1 : t + 2], ("wait", t), ("take", t)]
    assert cuda.log == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_is_raised_after_the_results_of_all_frames_before_it(monkeypatch, device):
    monkeypatch.setattr(torch, "cuda", FakeCuda())

    def steps():
        yield from (0, 1)
        raise OSError("frame 2")

    torch.cuda.log.append(("step", 0))
    results = one_behind(steps(), lambda t: 10 * t, torch.device(device))
    assert [next(results), next(results)] == [0, 10]
    with pytest.raises(OSError, match="frame 2"):
        next(results)
    assert list(results) == []


def test_on_a_cpu_a_frame_is_processed_before_the_next_is_requested():
    log = []
    steps = (log.append(f"step {t}") or t for t in range(2))
    assert list(one_behind(steps, lambda t: log.append(f"take {t}") or t, torch.device("cpu"))) == [0, 1]
    assert log == ["step 0", "take 0", "step 1", "take 1"]
