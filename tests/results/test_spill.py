"""The temporary file of a video: masks and scores are read back exactly, memory is flat, the file is always deleted."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from local2global.errors import UserError
from local2global.results import spill as module
from local2global.results.spill import Spill


def temporary_files():
    """Open files in the temporary folder that have no name."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if link.is_symlink() and "(deleted)" in os.readlink(link)}


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to list open files")


def test_masks_are_read_back_in_frame_order():
    spill = Spill(8, 1)
    for frame in range(3):
        spill.append(np.zeros((8, 1)), {7: f"seven {frame}", 2: "two"} if frame != 1 else {2: "also two"})
    assert list(spill.read(7)) == ["seven 0", None, "seven 2"]
    assert list(spill.read(2)) == ["two", "also two", "two"]
    assert list(spill.read(3)) == [None] * 3
    assert spill.masked.nonzero()[0].tolist() == [2, 7]


def test_slots_and_files_may_be_read_alternately_and_while_frames_are_written():
    first, second = Spill(2, 1), Spill(2, 1)
    for frame in range(3):
        first.append(np.zeros((2, 1)), {0: f"a{frame}", 1: f"b{frame}"})
        second.append(np.zeros((2, 1)), {0: f"c{frame}"})
    readers = [first.read(0), first.read(1), second.read(0)]
    assert [next(reader) for reader in readers] == ["a0", "b0", "c0"]
    first.append(np.zeros((2, 1)), {0: "a3"})
    assert [next(reader) for reader in readers] == ["a1", "b1", "c1"]
    assert list(first.read(0)) == ["a0", "a1", "a2", "a3"]


@pytest.mark.parametrize("count", [1, 7, 25, 100])
@pytest.mark.parametrize("block", [1 << 24, 3 * 4 * 100, 1])
def test_a_top_mean_is_exact_whatever_the_block_size(monkeypatch, count, block):
    monkeypatch.setattr(module, "SCORE_BYTES", block)
    scores = np.random.default_rng(0).random((100, 6, 4), dtype=np.float32)
    spill = Spill(6, 4)
    for frame in scores:
        spill.append(frame, {})
    expected = np.sort(scores, axis=0)[100 - count :].astype(np.float64).mean(0)
    np.testing.assert_allclose(spill.top_mean(count), expected, rtol=0, atol=1e-15)


@needs_proc
@pytest.mark.parametrize("how", ["closed", "garbage collected"])
def test_the_file_has_no_name_and_is_deleted(how):
    before = temporary_files()
    spill = Spill(1, 1)
    spill.append(np.zeros((1, 1)), {0: "x" * 100_000})
    assert len(temporary_files() - before) == 1
    if how == "closed":
        spill.close()
        spill.close()
    else:
        del spill
        gc.collect()
    assert temporary_files() == before


def test_a_killed_process_leaves_no_file(tmp_path):
    code = (
        "import numpy as np, os, signal\n"
        "from local2global.results.spill import Spill\n"
        "spill = Spill(1, 1)\n"
        "spill.append(np.zeros((1, 1)), {0: 'x' * 100000})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False
    )
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def peak(frames):
    """Peak bytes allocated while a video of 20 slots is written, scored and read."""
    tracemalloc.start()
    spill = Spill(20, 40)
    scores = np.zeros((20, 40), np.float32)
    for _ in range(frames):
        spill.append(scores, dict.fromkeys(range(20), "x" * 400))
    spill.top_mean(max(1, frames // 4))
    for slot in range(20):
        assert sum(counts is not None for counts in spill.read(slot)) == frames
    spill.close()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return allocated


def test_memory_does_not_grow_with_the_video(monkeypatch):
    monkeypatch.setattr(module, "SCORE_BYTES", 1 << 17)
    assert peak(1000) < 1.2 * peak(100)


def test_a_full_disk_is_a_user_error(monkeypatch):
    spill = Spill(1, 1)

    class Full:
        def seek(self, *_): ...

        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "_file", Full())
    with pytest.raises(UserError, match=r"frame 0 cannot be written .No space left.*TMPDIR"):
        spill.append(np.zeros((1, 1)), {})


def test_a_disk_without_room_is_reported_before_a_frame_is_written(monkeypatch):
    spill = Spill(2, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"masks of frame 0 needs .* Set TMPDIR to a folder with more space"):
        spill.append(np.zeros((2, 1)), {})
    assert spill.length == 0
