"""JSON files, and output files: written to a temporary path, then renamed.

A folder is locked by the process that writes to it.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from .errors import UserError, first_line, make_folder

try:
    import fcntl
except ImportError:  # Windows: files are written without locks
    fcntl = None  # type: ignore[assignment]

#: Suffix of temporary files.  `locked_folder` deletes those of killed processes, so no other program may use it.
PARTIAL = ".l2g-tmp"

#: Bytes of a disk that are left free, for the small files that are written after a large one.
RESERVE = 1 << 22

#: Errors that only writing raises: no space, quota exceeded, file too large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_locks: weakref.WeakSet[FileIO] = weakref.WeakSet()


def _close_inherited() -> None:
    # A forked data-loading worker must not hold the locks of a killed parent.
    for file in list(_locks):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _lock(path: Path) -> FileIO | None:
    """Open a file for appending and lock it until it is closed or the process dies; None if it is locked."""
    while True:
        # Without a buffer, whose mutex another thread may hold while the process forks.
        file = FileIO(str(path), "a", opener=_open_itself)
        _locks.add(file)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        if _is_open(path, file):
            return file
        file.close()  # the previous holder has just renamed or deleted it


def _open_itself(path: str, flags: int) -> int:
    """Open a file, but not the target of a link, and without waiting for the reader of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _is_open(path: Path, file: FileIO) -> bool:
    """Whether `file` is still the file at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def parse_json(data: bytes, path: str | Path) -> Any:
    """The value of a JSON file in UTF-8, UTF-16 or UTF-32; NaN and infinities are accepted.

    Args:
        data: the content of the file.
        path: the file, for messages.

    Raises:
        UserError: if it is empty, not JSON, or nested too deeply, or a text has half of a surrogate pair.
    """
    import orjson  # 40 ms, which most commands do not need

    if not data:
        raise UserError(f"{path}: the file is empty.")
    enabled = gc.isenabled()
    gc.disable()  # it would look for cycles in the growing content again and again
    try:
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(data)
        # Slower; it accepts NaN and other encodings than UTF-8, and tells where a file is damaged.
        content = json.loads(data.decode(json.detect_encoding(data)))
        if b"\\ud" in data or b"\\uD" in data:
            # JSON can escape half of a surrogate pair, which can be neither printed nor used as a file name.
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: a text with half of a surrogate pair (\\ud800 to \\udfff). Remove it."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON: byte {error.start} is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not JSON: {place}: {error.msg}.") from None
    except RecursionError:
        raise UserError(f"{path}: its lists are nested too deeply.") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {str(error).split(';')[0]}.") from None
    finally:
        if enabled:
            gc.enable()


def cannot_write(path: str | Path, error: BaseException) -> UserError:
    """The error for a file that cannot be written."""
    reason = error.strerror if isinstance(error, OSError) else None
    return UserError(f"{path}: cannot be written ({reason or first_line(error)})")


def require_space(folder: str | Path, size: int, what: str, remedy: str = "") -> None:
    """Check that a disk has room for a file, before the file is written.

    Args:
        folder: a folder on the disk, which may not exist yet.
        size: bytes of the file; `RESERVE` bytes more must be free.
        what: what is written, for the message.
        remedy: a sentence appended to the message.

    Raises:
        UserError: if the disk has too little space.
    """
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if free < size + RESERVE:
        needed, left = (f"{count / 1e6:,.1f} MB" for count in (size + RESERVE, free))
        raise UserError(
            f"{folder}: {what} needs {needed} and the disk has {left} left. {remedy or 'Free some space.'}"
        )


def stays_inside(name: str) -> bool:
    """Whether a path from a file of strangers, appended to a folder, leads to a place in this folder."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] != "" and ".." not in parts and ":" not in parts[0]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends and deleted if the block raises.

    The name is `<path>.l2g-tmp`, or a unique one while another process writes the same file.

    Args:
        path: the output file; an existing file is replaced.

    Yields:
        the path to write to, in the same folder.

    Raises:
        UserError: if the folder does not exist or is not writable, the path is no file, or the disk is full.
    """
    target = Path(path)
    partial = target.with_name(f"{target.name}{PARTIAL}")
    lock: FileIO | None = None
    if target.exists() and not target.is_file():
        # Root would replace a device or a pipe by a file.
        raise UserError(f"{target}: cannot be written (it exists and is no file)")
    try:
        lock = _lock(partial)
        if lock is None:
            partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_native_id()}{PARTIAL}")
            lock = _lock(partial)
        if lock is not None:
            lock.truncate(0)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        if fcntl is None and lock is not None:
            lock.close()  # Windows cannot rename an open file
        yield partial
        os.replace(partial, target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.errno in _FULL or not target.parent.is_dir()):
            raise cannot_write(target, error) from error
        raise
    finally:
        if lock is not None:
            lock.close()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the block ends and deleted if the block raises.

    The folder above `path` must be locked: `locked_folder` deletes what a killed process leaves.

    Args:
        path: the folder to write; an existing one is replaced with all its files.

    Yields:
        an empty folder, `<path>.l2g-tmp`.

    Raises:
        UserError: if it is not writable, or the disk is full.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(os.fspath(path)) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked_folder(folder: Path, setting: str) -> Iterator[None]:
    """Create an output folder and lock it; temporary files and folders of killed processes are deleted.

    The file `.lock` names the process.  The lock of a killed process is void.  Folders that were created and stay empty
    are removed.

    Args:
        folder: the folder.
        setting: the option that selects another folder, such as "--output".

    Raises:
        UserError: if the folder cannot be created, or another process writes to it.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder, setting)
    path = folder / ".lock"
    try:
        file = _lock(path)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if file is None:
        holder = ""
        with suppress(OSError):
            holder = path.read_text(encoding="utf-8")
        raise UserError(
            f"{folder}: {holder or 'another process'} writes to this folder. Choose another with {setting}."
        )
    try:
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} (since {since})".encode())
        delete_partial_files(folder)
        yield
    finally:
        if _is_open(path, file):
            path.unlink()
        file.close()
        with suppress(OSError):
            for empty in created:
                empty.rmdir()


@contextmanager
def waiting_lock(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Lock a file, which is created and then deleted; waits while another process holds the lock.

    Args:
        path: the lock file, in an existing folder.
        wait: called once if another process holds the lock.

    Raises:
        UserError: if the lock file cannot be created.
    """
    try:
        file = _lock(path)
        if file is None:
            wait()
        while file is None:
            time.sleep(0.1)
            file = _lock(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        if _is_open(path, file):
            path.unlink()
        file.close()


def delete_partial_files(folder: Path) -> None:
    """Delete the temporary files and folders in a locked folder that no process is writing."""
    for partial in folder.glob(f"*{PARTIAL}"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
            continue
        try:
            lock = _lock(partial)
        except OSError:  # a link or a pipe
            partial.unlink(missing_ok=True)
            continue
        if lock is not None:
            partial.unlink()
            lock.close()
