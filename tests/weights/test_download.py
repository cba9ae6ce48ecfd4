"""Downloads of weights from a server on this machine that fails in many ways."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest

from local2global.errors import UserError
from local2global.weights import download as module
from local2global.weights.download import NotFoundError, cache_folder, check_url, download, pin_of
from loopback import FileServer

CONTENT = b"PK\x03\x04" + bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with FileServer({"/w.pth": CONTENT}) as server:
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)


def get(server: FileServer, folder: Path, **options) -> Path:
    return download(server.url("/w.pth"), folder / "w.pth", "small", **options)


def test_a_file_is_downloaded_once_announced_and_pinned(server, tmp_path, capsys):
    path = get(server, tmp_path / "new", licence="Apache-2.0")
    assert path.read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert "downloading small (Apache-2.0), 1 MB, from http://127.0.0.1" in said
    assert f"saved to {path} (SHA-256 {SHA[:16]}" in said
    assert pin_of(path) == module.Pin(server.url("/w.pth"), len(CONTENT), SHA)
    assert get(server, tmp_path / "new") == path
    assert len(server.requests) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.pth", "w.pth.json"]


def test_a_cut_download_is_resumed_where_it_stopped(server, tmp_path, capsys):
    server.cut = [300_000, 100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [start for _, start in server.requests] == [None, "bytes=300000-", "bytes=400000-"]
    assert "small: connection lost (300.0 kB of 1 MB); trying again" in capsys.readouterr().err


def test_a_later_run_resumes_the_download_of_an_earlier_one(server, tmp_path):
    server.cut = [200_000, *[0] * (module.ATTEMPTS - 1)]
    with pytest.raises(UserError, match=f"lost {module.ATTEMPTS} times .* Run the command again to resume"):
        get(server, tmp_path)
    assert not (tmp_path / "w.pth").exists()
    server.requests.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/w.pth", "bytes=200000-")]


def test_a_file_that_changed_in_between_is_downloaded_from_its_start(server, tmp_path, monkeypatch):
    server.cut = [200_000]
    with monkeypatch.context() as once:
        once.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(UserError, match="the connection was lost"):
            get(server, tmp_path)
    server.files["/w.pth"], server.etag = CONTENT[::-1], '"2"'
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("option", ["ranges", "etag"])
def test_without_ranges_or_a_validator_a_cut_download_starts_over(server, tmp_path, option):
    setattr(server, option, None)
    server.cut = [300_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_file_without_an_announced_size_is_downloaded(server, tmp_path):
    server.length = False
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(UserError, match=f"has SHA-256 {SHA}, but the listed hash has 0000"):
        get(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_second_download_must_equal_the_first(server, tmp_path):
    get(server, tmp_path).unlink()
    server.files["/w.pth"] = CONTENT + b"x"
    with pytest.raises(UserError, match=r"but the first download, pinned in w\.pth\.json, has"):
        get(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth.json"]


def test_a_changed_file_in_the_cache_is_refused(server, tmp_path):
    path = get(server, tmp_path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"its content has changed: .* Delete it to download it again"):
        get(server, tmp_path)


def test_a_file_copied_by_hand_is_accepted_and_pinned(tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    with FileServer() as empty:
        get(empty, tmp_path)
        get(empty, tmp_path)
        assert empty.requests == []
    assert capsys.readouterr().err.count("is pinned from now on") == 1
    assert json.loads((tmp_path / "w.pth.json").read_text())["sha256"] == SHA


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"\n <!DOCTYPE html><html>", "application/octet-stream", "a web page instead of a file"),
        (CONTENT, "text/html; charset=utf-8", "a web page instead of a file"),
        (
            b'{"error": "no such model"}',
            "application/json",
            r"a message of the server \(JSON\) instead of a file",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "text/plain", "a pointer of Git LFS"),
        (b"", "application/octet-stream", "an empty file"),
    ],
)
def test_what_is_not_a_weights_file_is_refused(server, tmp_path, content, kind, message):
    server.files["/w.pth"], server.types["/w.pth"] = content, kind
    with pytest.raises(NotFoundError, match=message):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refusals_of_the_server_are_one_line(server, tmp_path):
    server.status["/w.pth"] = 503
    with pytest.raises(UserError, match=r"the server refuses \(HTTP 503"):
        get(server, tmp_path)
    del server.files["/w.pth"], server.status["/w.pth"]
    with pytest.raises(NotFoundError, match=r"no such file \(HTTP 404\)"):
        get(server, tmp_path)


def test_without_a_network_the_message_names_the_address_and_the_target(server, tmp_path):
    url = server.url("/w.pth")
    server.__exit__()
    with pytest.raises(UserError, match=f"Connection refused.* Download {url} by hand to {tmp_path}/w.pth"):
        download(url, tmp_path / "w.pth", "small")
    server.__enter__()


def test_a_server_that_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.stall = 0.7
    server.etag = None
    with pytest.raises(UserError, match=r"lost 2 times .no data for"):
        get(server, tmp_path)


def test_a_slow_server_is_waited_for(server, tmp_path):
    server.stall = 0.3
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_sends_parts_is_asked_for_the_rest(server, tmp_path):
    """The size of the file is in Content-Range; that of the part used to count as the file's."""
    server.most = 300_000
    get(server, tmp_path)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert len(server.requests) == 4


@pytest.mark.parametrize("given", ["bytes 0-", "bytes 0-9/*", "bytes 5-9/100", "bytes 0-9/" + "9" * 5000, ""])
def test_a_part_of_an_unknown_whole_is_not_kept(server, tmp_path, given):
    server.most, server.headers = 10, {"Content-Range": given}
    with pytest.raises(UserError, match="the server resumed at another position"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", ["\u00b2", "-5", "9" * 5000, "many"])
def test_a_size_that_is_no_number_is_ignored(server, tmp_path, length):
    server.headers = {"Content-Length": length}
    get(server, tmp_path)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_compressed_answer_is_refused(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(UserError, match=r"compressed \(gzip\), which is not supported"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_only_drips_is_given_up(server, tmp_path, monkeypatch):
    """Data within every timeout, but too few."""
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "SLOWEST", 1e12)
    server.stall = 0.2
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(UserError, match=r"lost 2 times .less than 1000000 MB per second"):
        get(server, tmp_path)


@pytest.mark.parametrize("path", ["/\u00e9 w.pth", "/%C3%A9%20w.pth"])
def test_letters_of_an_address_are_quoted(server, tmp_path, path):
    server.files["/%C3%A9%20w.pth"] = CONTENT
    assert download(server.url(path), tmp_path / "w.pth", "small").read_bytes() == CONTENT


def test_a_name_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"small: cannot be downloaded \(.*https://a\.\.b/w\.pth by hand"):
        download("https://a..b/w.pth", tmp_path / "w.pth", "small")


def test_a_redirect_to_no_address_is_one_line(server, tmp_path):
    server.redirects["/w.pth"] = "http://[::1"
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*IPv6"):
        get(server, tmp_path)


def test_redirects_lead_to_https_only(server, tmp_path):
    server.redirects = {"/a": "/w.pth", "/b": "http://example.org/w.pth", "/c": "ftp://127.0.0.1/w"}
    path = download(server.url("/a"), tmp_path / "w.pth", "small")
    assert path.read_bytes() == CONTENT
    for source in ("/b", "/c"):
        with pytest.raises(UserError, match="which is not https"):
            download(server.url(source), tmp_path / "other.pth", "small")


@pytest.mark.parametrize(
    "url", ["http://example.org/w.pth", "ftp://127.0.0.1/w", "file:///etc/passwd", "https://", "x"]
)
def test_other_addresses_than_https_are_refused(url):
    with pytest.raises(UserError, match="https:// addresses only"):
        check_url(url)


def test_a_redirect_from_https_may_not_lead_to_this_machine():
    with pytest.raises(UserError):
        check_url("http://127.0.0.1/w.pth", loopback=False)


def test_a_file_over_the_limit_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOWNLOAD", 1000)
    with pytest.raises(UserError, match=r"the limit is 1\.0 kB"):
        get(server, tmp_path)
    server.length = False
    with pytest.raises(UserError, match="more data than the limit"):
        get(server, tmp_path)
    assert not (tmp_path / "w.pth.part").exists()


def test_a_full_disk_is_noticed_before_the_transfer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(
        UserError, match=r"the download needs .* MB and the disk has 0\.0 MB left\. Set L2G_CACHE"
    ):
        get(server, tmp_path)


def test_a_disk_that_fills_up_during_the_transfer_is_one_line(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(UserError, match=r"w\.pth\.part: cannot be written \(No space left on device\)"):
        get(server, tmp_path)


def test_processes_that_want_the_same_file_download_it_once(server, tmp_path, capsys):
    server.stall = 0.3
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert "waiting for another process" in capsys.readouterr().err
    assert not (tmp_path / "w.pth.lock").exists()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"L2G_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/local2global"),
        ({"HOME": "/home/x"}, "/home/x/.cache/local2global"),
    ],
)
def test_the_cache_folder_follows_the_environment(monkeypatch, variables, folder):
    for name in ("L2G_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
