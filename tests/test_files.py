"""Output files are complete or absent, and a folder has one writer."""

import errno
import gc
import math
import os
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from local2global.errors import UserError
from local2global.files import RESERVE, atomic_path, locked_folder, parse_json, require_space, write_text

Usage = namedtuple("Usage", "total used free")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text("whole")
        assert names(tmp_path) == ["a.txt.l2g-tmp"]
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_failed_block_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "a.txt"):
        tmp_path.write_text("half")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_two_writers_of_one_file_use_different_temporary_files(tmp_path):
    with atomic_path(tmp_path / "a.txt") as first, atomic_path(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


def test_the_temporary_file_of_a_killed_process_is_reused(tmp_path):
    (tmp_path / "a.txt.l2g-tmp").write_text("a long remnant of a killed process")
    with atomic_path(tmp_path / "a.txt") as partial, partial.open("a") as file:
        file.write("new")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_full_disk_is_one_line_with_the_path(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space"),
        atomic_path(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".lock", "out.json.l2g-tmp"])
@pytest.mark.parametrize("kind", ["link", "pipe", "dangling link"])
def test_no_file_is_opened_through_a_link_and_no_pipe_waited_for(tmp_path, name, kind):
    """A folder of strangers could have `.lock` point to any file, which was emptied."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("precious")
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(victim if kind == "link" else tmp_path / "nowhere")

    def use() -> None:
        if name == ".lock":
            locked_folder(folder, "--output").__enter__()
        write_text(folder / "out.json", "text")

    with pytest.raises(UserError, match="cannot be written"):
        use()
    if name != ".lock":  # the next writer removes what is in the way
        with locked_folder(folder, "--output"):
            use()
        assert names(folder) == ["out.json"]
    assert victim.read_text() == "precious"
    assert names(tmp_path) == ["folder", "victim"]


def test_a_lock_whose_file_has_vanished_is_refused_like_any_other(tmp_path, monkeypatch):
    """Its holder ends between the attempt to lock and the attempt to read the name of the holder."""
    monkeypatch.setattr("local2global.files._lock", lambda path: None)
    with (
        pytest.raises(UserError, match="another process writes to this folder"),
        locked_folder(tmp_path, "--output"),
    ):
        pass


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_files_are_replaced(tmp_path, kind):
    """Root would replace a device such as /dev/null by a file."""
    path = tmp_path / kind
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(UserError, match=rf"{kind}: cannot be written \(it exists and is no file\)"):
        write_text(path, "text")
    assert not path.is_file()
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_one_line_with_the_path(tmp_path):
    with pytest.raises(UserError, match=r"gone/a\.txt: cannot be written \(No such file"):
        write_text(tmp_path / "gone" / "a.txt", "")


def test_a_locked_folder_names_its_process(tmp_path):
    with (
        locked_folder(tmp_path, "--output"),
        pytest.raises(
            UserError, match=rf"process {os.getpid()} on .* \(since 2.*Choose another with --output"
        ),
        locked_folder(tmp_path, "--output"),
    ):
        pass
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_void_also_if_a_child_of_it_lives(tmp_path):
    """The child is forked as data-loading workers are."""
    code = (
        "import os, pathlib, sys, time\n"
        "from local2global.files import locked_folder\n"
        f"with locked_folder(pathlib.Path({str(tmp_path)!r}), '--output'):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on"), locked_folder(tmp_path, "--output"):
            pass
        process.kill()
        process.wait()
        (tmp_path / "a.pth.l2g-tmp").touch()
        (tmp_path / "thesis.tmp").touch()
        with locked_folder(tmp_path, "--output"):
            assert names(tmp_path) == [".lock", "thesis.tmp"]
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_folders_created_for_nothing_are_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path / "a" / "b", "--output"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_file_that_does_not_fit_the_disk_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(100, 0, RESERVE + 10))
    require_space(tmp_path / "not" / "yet", 10, "a.pth")
    with pytest.raises(UserError, match=r"a\.pth needs 4\.2 MB and the disk has 4\.2 MB left\. Free some"):
        require_space(tmp_path, 11, "a.pth")


def test_json_may_have_nan_a_byte_order_mark_or_another_encoding():
    for data in (b'{"a": [1]}', '{"a": [1]}'.encode("utf-8-sig"), '{"a": [1]}'.encode("utf-16")):
        assert parse_json(data, "a.json") == {"a": [1]}
    assert math.isnan(parse_json(b"[NaN]", "a.json")[0])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"[1,\n2", "not JSON: line 2, column 2"),
        (b"[" * 100_000, "its lists are nested too deeply"),
        (b'["\xff"]', "not JSON: byte 2 is not UTF-8 text"),
        (rb'["\ud800"]', "a text with half of a surrogate pair"),
    ],
)
def test_unreadable_json_is_one_line_with_the_path(data, problem):
    with pytest.raises(UserError, match=f"^a.json: {problem}"):
        parse_json(data, "a.json")
    assert gc.isenabled()
