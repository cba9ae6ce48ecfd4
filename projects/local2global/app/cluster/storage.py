"""Files by address: local paths, and everything that fsspec opens, such as s3://, gs://, hf:// and memory://.

An output folder appears whole: on a local disk it is renamed when it is complete, elsewhere its files are uploaded and
`MARKER` is the last one.  A folder that this package has not made is never replaced or deleted.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...errors import UserError, first_line, make_folder
from ...files import PARTIAL, atomic_path, cannot_write

MARKER = "done.json"
_FIRST = "stream.json"  # uploaded first: a folder with one of both was made by this package
_BLOCK = 1 << 20


def locate(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        UserError: if fsspec does not know the protocol, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(os.path.expanduser(address))  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {first_line(error)}") from error


def absolute(address: str) -> str:
    """A local path as an absolute path; other addresses without a slash at their end."""
    fs, path = locate(address)
    is_root = address.endswith("://")
    return path if isinstance(fs, LocalFileSystem) else address if is_root else address.rstrip("/")


def local_path(address: str) -> Path | None:
    """The path of an address on a disk of this machine, else None."""
    fs, path = locate(address)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def expand(patterns: Iterable[str]) -> Iterator[str]:
    """The addresses that match the patterns, in the order of the patterns, each pattern's sorted.

    Args:
        patterns: addresses, or globs such as `videos/**/*.mp4` and `s3://bucket/*.mp4`.

    Raises:
        UserError: if no file matches a glob, or its protocol is unknown.
    """
    for pattern in patterns:
        fs, path = locate(pattern)
        is_local = isinstance(fs, LocalFileSystem)
        if not re.search(r"[*?\[]", path) or (is_local and os.path.exists(path)):
            yield absolute(pattern)
            continue
        found = glob.iglob(path, recursive=True) if is_local else map(fs.unstrip_protocol, fs.glob(path))
        matches = sorted(found)
        if not matches:
            raise UserError(f"{pattern}: no file matches")
        yield from matches


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A file or folder on the local disk: the original, or a download that is deleted with the block.

    Raises:
        UserError: if it does not exist.
    """
    fs, path = locate(address)
    if not fs.exists(path):
        raise UserError(f"{address}: no such file or folder")
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="l2g-") as folder:
        target = Path(folder) / path.rstrip("/").rpartition("/")[2]
        fs.get(path, str(target), recursive=fs.isdir(path))
        yield target


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"\0{file.relative_to(path)}\0".encode())
        if file.is_file():
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def version(address: str) -> str | None:
    """A text that changes when a file changes, quick to get: time stamps or a hash that the server keeps.

    None for folders, and for servers that offer none.
    """
    fs, path = locate(address)
    with suppress(OSError):
        if fs.isfile(path) and "http" not in fs.protocol:
            return str(fs.ukey(path))
    return None


def read_bytes(address: str) -> bytes | None:
    """The content of a small file; None if it does not exist."""
    fs, path = locate(address)
    with suppress(FileNotFoundError, NotADirectoryError):
        return bytes(fs.cat_file(path))
    return None


def write_file(address: str, source: Path) -> None:
    """Copies a file into an existing folder, atomically on a local disk and on object stores."""
    fs, path = locate(address)
    if isinstance(fs, LocalFileSystem):
        with atomic_path(path) as partial:
            shutil.copyfile(source, partial)
    else:
        fs.put_file(str(source), path)


def write_bytes(address: str, content: bytes) -> None:
    """Writes a small file into an existing folder, as `write_file` does."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        write_file(address, Path(file.name))


def sizes(folder: Path | str) -> dict[str, int]:
    """Bytes of every file in a folder, by the path relative to it; empty if the folder does not exist."""
    fs, root = locate(str(folder))
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        return {}
    return {os.path.relpath(name, root): int(info["size"]) for name, info in sorted(found.items())}


@contextmanager
def new_folder(address: str) -> Iterator[Path]:
    """A local folder whose files become those of `address` when the block ends; those of an earlier run are replaced.

    After an exception the address is unchanged, or, if the upload had begun, does not exist.

    Args:
        address: the output folder.

    Yields:
        a path of an empty place, whose last part is that of the address; the block creates the folder.

    Raises:
        UserError: if the address holds other files, or cannot be written.
    """
    fs, path = locate(address)
    is_local = isinstance(fs, LocalFileSystem)
    parent, _, name = path.rstrip("/").rpartition("/")
    if fs.exists(path) and not _is_output(fs, path) and (fs.isfile(path) or fs.ls(path, detail=False)):
        raise UserError(
            f"{address}: holds no output of l2g predict, and is not replaced. Choose another --output."
        )
    if is_local:
        make_folder(Path(parent), "--output")
    # `locked_folder` deletes folders with this suffix that a killed process has left on a local disk.
    place = tempfile.mkdtemp(PARTIAL if is_local else None, f"{name}.", parent if is_local else None)
    try:
        folder = Path(place) / name
        yield folder
        if is_local:
            _replace(folder, path)
        else:
            _upload(fs, folder, path)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_output(fs: Any, path: str) -> bool:
    """Whether a folder was made by `new_folder`, perhaps incompletely."""
    return any(fs.exists(f"{path}/{file}") for file in (_FIRST, MARKER))


def _replace(folder: Path, path: str) -> None:
    """Renames a folder to a path on the same disk; an earlier folder is deleted."""
    try:
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.replace(folder, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _upload(fs: Any, folder: Path, path: str) -> None:
    """Uploads a folder in place of an earlier one, `_FIRST` first and `MARKER` last."""
    try:
        _remove(fs, path)
        for file in sorted(sizes(folder), key=lambda name: (name != _FIRST, name == MARKER, name)):
            target = f"{path}/{file}"
            fs.makedirs(fs._parent(target), exist_ok=True)
            fs.put_file(str(folder / file), target)
    except BaseException:
        _remove(fs, path)
        raise


def _remove(fs: Any, path: str) -> None:
    """Deletes a folder if it exists; its marker first."""
    with suppress(FileNotFoundError):
        fs.rm_file(f"{path}/{MARKER}")
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def discard_incomplete(address: str) -> None:
    """Deletes a folder without a marker, which a killed upload has left.  Folders on a local disk are always whole."""
    fs, path = locate(address)
    if not isinstance(fs, LocalFileSystem) and _is_output(fs, path) and not fs.exists(f"{path}/{MARKER}"):
        _remove(fs, path)


@contextmanager
def opened(address: str) -> Iterator[Iterable[bytes]]:
    """The lines of a file; none if it does not exist."""
    fs, path = locate(address)
    try:
        file = fs.open(path, "rb")
    except FileNotFoundError:
        yield ()
        return
    with file:
        yield file
