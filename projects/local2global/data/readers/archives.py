"""Images in zip files, read in place: the archives of public datasets need not be unpacked.

The table of a zip file's entries is read once, into flat arrays.  `zipfile.ZipFile` would keep an object per image
in every worker process.
"""

from __future__ import annotations

import fnmatch
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError, first_line

#: Bytes of one image in a zip file.
MAX_IMAGE = 1 << 28


class Archive:
    """The entries of a zip file.

    Args:
        path: the file.

    Raises:
        UserError: if it is no sound zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with ZipFile(path) as bundle:
                infos = [info for info in bundle.infolist() if not info.is_dir()]
            self._table = _entries(infos)
        except (OSError, BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            reason = first_line(error)
            raise UserError(f"{path}: not a readable zip file ({reason}). Download it again.") from error
        self.rows = {str(PurePosixPath(info.filename)): i for i, info in enumerate(infos)}
        self.folders = {str(p) for name in self.rows for p in PurePosixPath(name).parents}
        self._file: BinaryIO | None = None

    def read(self, name: str) -> bytes:
        """The unpacked bytes of an entry.

        Raises:
            FileNotFoundError: if there is no such entry.
            OSError: if it is damaged, encrypted, or compressed by another method than deflate.
        """
        row = self.rows.get(name)
        if row is None:
            raise FileNotFoundError(name)
        offset, packed, size, checksum, method, encrypted = self._table[row].tolist()
        if encrypted or method not in (ZIP_STORED, ZIP_DEFLATED) or max(packed, size) > MAX_IMAGE:
            raise OSError("an entry that is encrypted, too large, or compressed by an unusual method")
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        # Reads at a position: processes may share the file after a fork.
        descriptor = self._file.fileno()
        head = os.pread(descriptor, 30, offset)
        if len(head) != 30 or head[:4] != b"PK\3\4":
            raise OSError("a damaged zip entry")
        name_length, extra_length = struct.unpack("<HH", head[26:])
        data = os.pread(descriptor, packed, offset + 30 + name_length + extra_length)
        if method == ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError("a damaged zip entry") from error
        if len(data) != size or zlib.crc32(data) != checksum:
            raise OSError("a damaged zip entry")
        return data

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which each process opens for itself."""
        return {**self.__dict__, "_file": None}


def _entries(infos: Sequence[ZipInfo]) -> NDArray[np.int64]:
    """(entries, 6): offset, packed size, size, checksum, method and whether it is encrypted."""
    fields = [
        (i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type, i.flag_bits & 1)
        for i in infos
    ]
    return np.array(fields, dtype=np.int64).reshape(-1, 6)


@lru_cache(maxsize=8)
def _archive(path: Path, modified: int) -> Archive:
    return Archive(path)


def open_archive(path: Path) -> Archive:
    """The entries of a zip file, which is read again only if it has changed.

    Raises:
        UserError: if it is no sound zip file.
    """
    return _archive(path, path.stat().st_mtime_ns)


class ZipPath:
    """A file or folder in a zip file, with the part of pathlib's interface that readers of images need.

    Args:
        archive: the zip file.
        name: path in it, "." for all of it.
    """

    __slots__ = ("_archive", "_place")

    def __init__(self, archive: Archive, name: str | PurePosixPath) -> None:
        self._archive, self._place = archive, PurePosixPath(name)

    def __truediv__(self, name: str) -> ZipPath:
        return ZipPath(self._archive, self._place / name)

    def __str__(self) -> str:
        return f"{self._archive.path}/{self._place}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._place.name

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return self._place.suffix

    def with_suffix(self, suffix: str) -> ZipPath:
        """The path with another suffix."""
        return ZipPath(self._archive, self._place.with_suffix(suffix))

    def is_file(self) -> bool:
        """Whether the zip file has this entry."""
        return str(self._place) in self._archive.rows

    def is_dir(self) -> bool:
        """Whether the zip file has entries below this path."""
        return str(self._place) in self._archive.folders

    def glob(self, pattern: str) -> Iterator[ZipPath]:
        """The files whose path below this folder matches a pattern; `*` also matches slashes."""
        prefix = "" if str(self._place) == "." else f"{self._place}/"
        matches = re.compile(re.escape(prefix) + fnmatch.translate(pattern)).match
        return (ZipPath(self._archive, name) for name in self._archive.rows if matches(name))

    def ancestor(self, depth: int) -> ZipPath:
        """The folder `depth` levels above."""
        return ZipPath(self._archive, [self._place, *self._place.parents][depth])

    def read_bytes(self) -> bytes:
        """As `Archive.read`."""
        return self._archive.read(str(self._place))


#: An image file, and a folder of image files.
ImageFile = Path | ZipPath
ImageRoot = Path | ZipPath


def image_root(folder: str | Path) -> ImageRoot | None:
    """A folder of images: the folder itself, or its contents in a zip file; None if there is neither.

    The zip file of a folder `train/JPEGImages` is `train/JPEGImages.zip` or `train.zip`.  The names in it may begin
    with `train/JPEGImages/`, `JPEGImages/`, or, in `JPEGImages.zip`, with the names of videos.

    Raises:
        UserError: if the zip file is damaged.
    """
    folder = Path(folder)
    if folder.is_dir():
        return folder
    for depth, place in enumerate((folder, folder.parent)):
        path = place.with_name(f"{place.name}.zip") if place.name else place
        if not path.is_file():
            continue
        archive = open_archive(path)
        parts = folder.parts[-1 - depth :]
        inner = ["/".join(folder.parts[-2:]), "/".join(parts), *([parts[-1]] if depth else ["."])]
        for name in dict.fromkeys(inner):
            found = ZipPath(archive, name)
            if found.is_dir():
                return found
    return None


def find_image_root(folder: str | Path) -> ImageRoot:
    """As `image_root`.

    Raises:
        UserError: if there is no such folder, nor a zip file of it.
    """
    found = image_root(folder)
    if found is None:
        raise UserError(f"{folder}: no such image folder, nor a zip file of it.")
    return found
