"""Downloads over HTTP: resumed, verified by size and SHA-256, and announced on standard error.

Beside a file, `<file>.json` pins its address, size and SHA-256.  A partial download is `<file>.part`.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from ..errors import UserError, make_folder
from ..files import cannot_write, require_space, waiting_lock, write_text
from ..limits import MAX_DOWNLOAD

#: Seconds without data after which a connection counts as cut.
TIMEOUT = 30.0

#: Connections per download.
ATTEMPTS = 6

#: Seconds before the second connection; the pauses double up to eight times that.
PAUSE = 1.0

#: Bytes per second below which a connection counts as cut after `TIMEOUT`.
SLOWEST = 1000

#: Content types that no file of weights has, and what they are.
_MESSAGES = {
    "text/html": "a web page",
    "application/json": "a message of the server (JSON)",
    "application/xml": "a message of the server (XML)",
}

_CHUNK = 1 << 20


class NotFoundError(UserError):
    """The server has no such file, or answers with a web page."""


class _CutError(Exception):
    """The connection failed; the download can be resumed."""


class _UnreachableError(_CutError):
    """No connection could be made."""


@dataclass(frozen=True)
class Pin:
    """What is known about a downloaded file; stored beside it.

    Attributes:
        url: where it was downloaded from; "" for a file that was copied by hand.
        size: bytes.
        sha256: hash of the content.
    """

    url: str
    size: int
    sha256: str


def cache_folder() -> Path:
    """`$L2G_CACHE`, else `$XDG_CACHE_HOME/local2global`, else `~/.cache/local2global`."""
    if os.environ.get("L2G_CACHE"):
        return Path(os.environ["L2G_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "local2global"


def say(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(f"l2g: {text}\n")
    sys.stderr.flush()


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def download(url: str, path: Path, title: str, licence: str = "", sha256: str | None = None) -> Path:
    """Download a file, unless it is there; verify it and pin its hash.

    A file that was copied to `path` by hand is accepted and pinned.  Several processes may download the same file: one
    does, the others wait.

    Args:
        url: an https address; http is allowed on this machine only.
        path: the target; its folder is created.
        title: name of the file for messages.
        licence: its licence; "" if it is unknown.
        sha256: the expected hash; None for that of the first download.

    Returns:
        `path`.

    Raises:
        NotFoundError: if the server has no such file.
        UserError: if the file cannot be downloaded, or differs from the expected or the pinned hash.
    """
    check_url(url)
    if path.is_file() and pin_of(path) is not None:
        return _verify(path, sha256)  # without a lock: the folder may be read-only
    make_folder(path.parent, "L2G_CACHE")
    with waiting_lock(
        path.with_name(f"{path.name}.lock"), lambda: say(f"{title}: waiting for another process")
    ):
        if path.is_file():
            return _verify(path, sha256)
        part = path.with_name(f"{path.name}.part")
        try:
            _transfer(url, path, part, title, licence)
        except OSError as error:
            raise cannot_write(part, error) from error
        pinned = pin_of(path)
        found = Pin(url, part.stat().st_size, _hash(part))
        expected = sha256 or (pinned.sha256 if pinned else found.sha256)
        if found.sha256 != expected:
            _discard(part)
            origin = "the listed hash" if sha256 else f"the first download, pinned in {_pin_path(path).name},"
            raise UserError(
                f"{title}: {url} has SHA-256 {found.sha256}, but {origin} has {expected}. The file was not kept."
            )
        _write_json(_pin_path(path), asdict(found))
        try:
            os.replace(part, path)
        except OSError as error:
            raise cannot_write(path, error) from error
        _state_path(part).unlink(missing_ok=True)
        say(f"{title}: saved to {path} (SHA-256 {found.sha256[:16]}...)")
    return path


def pin_of(path: Path) -> Pin | None:
    """The pin beside a downloaded file; None if there is none or it is damaged."""
    content = _read_json(_pin_path(path))
    try:
        return Pin(str(content["url"]), int(content["size"]), str(content["sha256"]))
    except (KeyError, TypeError, ValueError):
        return None


def _verify(path: Path, sha256: str | None) -> Path:
    """Check a file against its hash, or pin the hash of a file that was copied by hand."""
    pinned, found = pin_of(path), _hash(path)
    expected = sha256 or (pinned.sha256 if pinned else None)
    if expected is None:
        with path.open("rb") as file:
            _check_head(file.read(512), str(path))
        _write_json(_pin_path(path), asdict(Pin("", path.stat().st_size, found)))
        say(f"{path}: found; its SHA-256 {found[:16]}... is pinned from now on")
    elif found != expected:
        pin = "" if sha256 else f" (a file that you replaced on purpose: delete {_pin_path(path).name})"
        raise UserError(
            f"{path}: its content has changed: SHA-256 {found}, expected {expected}. "
            f"Delete it to download it again{pin}."
        )
    return path


# --- Transfer ---


def _transfer(url: str, path: Path, part: Path, title: str, licence: str) -> None:
    """Download to a partial file, with several connections if some are cut.

    Raises:
        UserError: if the server cannot be reached, refuses, or every connection is cut.
    """
    by_hand = f"Download {url} by hand to {path}."
    for attempt in range(ATTEMPTS):
        try:
            with _progress(title) as bar:
                _connect(url, part, bar, f"{title} ({licence or 'licence unknown'})" if attempt == 0 else "")
            return
        except _CutError as error:
            if isinstance(error, _UnreachableError) and attempt == 0:
                raise UserError(f"{title}: cannot be downloaded ({error}). {by_hand}") from error
            reason = str(error)
        if attempt + 1 < ATTEMPTS:
            say(f"{title}: connection lost ({reason}); trying again")
            time.sleep(PAUSE * min(2**attempt, 8))
    raise UserError(
        f"{title}: the connection was lost {ATTEMPTS} times ({reason}). Run the command again to resume. {by_hand}"
    )


def _connect(url: str, part: Path, bar: Any, announce: str) -> None:
    """One connection: append to the partial file until it is complete.

    Raises:
        _CutError: if the connection fails.
        UserError: if the server refuses, or what it sends is not a weights file.
    """
    state = _read_json(_state_path(part))
    validator = state.get("validator") if state.get("url") == url else None
    start = part.stat().st_size if part.is_file() and validator else 0
    headers = {"User-Agent": "local2global", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": str(validator)}
    with _network(url, _UnreachableError, part):
        request = urllib.request.Request(_quoted(url), headers=headers)
        response = _opener(url).open(request, timeout=TIMEOUT)
    with response:
        start = start if response.status == 206 else 0
        total = _total(response, start, part)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise UserError(
                f"{url}: the server sends the file compressed ({encoding}), which is not supported."
            )
        if total is not None and total > MAX_DOWNLOAD:
            raise UserError(f"{url}: {megabytes(total)}, the limit is {megabytes(MAX_DOWNLOAD)}.")
        kind = response.headers.get_content_type()
        if kind in _MESSAGES:
            raise NotFoundError(f"{url}: {_MESSAGES[kind]} instead of a file.")
        if announce:
            size = megabytes(total) if total is not None else "size unknown"
            resumed = f", {megabytes(start)} already here" if start else ""
            say(f"downloading {announce}, {size}{resumed}, from {url}")
        require_space(
            part.parent, (total or start) - start, "the download", "Set L2G_CACHE to another folder."
        )
        _write_json(_state_path(part), {"url": url, "validator": _validator(response)})
        try:
            with part.open("ab" if start else "wb") as file:
                _copy(response, file, url, start, total, bar)
        except UserError:
            _discard(part)
            raise


def _copy(response: Any, file: IO[bytes], url: str, start: int, total: int | None, bar: Any) -> None:
    done, begin = start, time.monotonic()
    while True:
        with _network(url, _CutError):
            chunk = response.read1(_CHUNK)
        if not chunk:
            break
        if done == 0:
            _check_head(chunk[:512], url)
        done += len(chunk)
        seconds = time.monotonic() - begin
        if seconds > TIMEOUT and done - start < SLOWEST * seconds:
            raise _CutError(f"less than {megabytes(SLOWEST)} per second")
        if done > (MAX_DOWNLOAD if total is None else total):
            raise UserError(f"{url}: more data than the {'limit' if total is None else 'announced size'}.")
        file.write(chunk)
        bar(done, total)
    if total is not None and done < total:
        raise _CutError(f"{megabytes(done)} of {megabytes(total)}")
    if done == 0:
        raise NotFoundError(f"{url}: an empty file.")


def _check_head(head: bytes, source: str) -> None:
    """Refuse a file that begins as text does: a web page, or the pointer of Git LFS."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise NotFoundError(f"{source}: a web page instead of a file.")
    if head.startswith(b"version https://git-lfs"):
        raise NotFoundError(f"{source}: a pointer of Git LFS instead of the file.")


def _total(response: Any, start: int, part: Path) -> int | None:
    """The size of the whole file; None if the server does not say.

    Raises:
        _CutError: if the server sends another part of the file than the rest; the partial file is deleted.
    """
    if response.status == 206:
        # The part may end before the file does.
        given = str(response.headers.get("Content-Range", ""))
        found = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})", given)
        if found is None or int(found[1]) != start or int(found[2]) < start:
            _discard(part)
            raise _CutError("the server resumed at another position")
        return int(found[2])
    length = str(response.headers.get("Content-Length", ""))
    return int(length) if re.fullmatch("[0-9]{1,15}", length) else None


def _validator(response: Any) -> str | None:
    """The header that identifies this version of the file; weak ones cannot be used to resume."""
    etag, modified = (response.headers.get(name) for name in ("ETag", "Last-Modified"))
    return str(etag) if etag and not etag.startswith("W/") else modified and str(modified)


@contextmanager
def _network(url: str, failure: type[_CutError], part: Path | None = None) -> Iterator[None]:
    """Turns network errors into `failure`, and refusals of the server into `UserError`.

    Args:
        url: the address, for messages.
        failure: the exception for a network error.
        part: the partial file; it is deleted if the server cannot resume from its size.
    """
    try:
        yield
    except UserError:  # of a redirect
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise NotFoundError(f"{url}: no such file (HTTP {error.code}).") from error
        if error.code == 416 and part is not None:
            _discard(part)
            raise _CutError("the file has changed") from error
        raise UserError(f"{url}: the server refuses (HTTP {error.code} {error.reason}).") from error
    except TimeoutError as error:
        raise failure(f"no data for {TIMEOUT:.0f} s") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        # ValueError: a redirect to a malformed address, or a name that is none
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise failure(text) from error


# --- Addresses ---


def check_url(url: str, loopback: bool = True) -> None:
    """Check that an address is https, or http on this machine.

    Args:
        url: the address.
        loopback: accept http on this machine.

    Raises:
        UserError: for another address.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise UserError(f"{url}: not an address ({error}).") from error
    if parts.username is not None:
        raise UserError(
            f"{parts._replace(netloc=host).geturl()}: addresses with a password are not supported."
        )
    if not host or not (
        parts.scheme == "https" or (parts.scheme == "http" and loopback and _is_loopback(host))
    ):
        raise UserError(f"{url}: weights are downloaded from https:// addresses only.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _quoted(url: str) -> str:
    """The address with spaces and letters beyond ASCII as `%..`; what is quoted stays."""
    parts = urlsplit(url)
    path, query = (quote(text, safe="%/:=&?~#+!$,;'@()*[]") for text in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects lead to https only; on this machine also to http on this machine."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            check_url(newurl, loopback=_is_loopback(urlsplit(req.full_url).hostname or ""))
        except UserError as error:
            raise UserError(f"{req.full_url}: redirected to {newurl}, which is not https.") from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    handlers: list[Any] = [_Redirects()]
    if _is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


# --- Files ---


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _pin_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    """Yields a function of (bytes done, size or None) that shows a progress bar if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
