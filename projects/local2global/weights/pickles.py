"""Safe reader of pickled arrays: no name in the pickle is imported or called.

detectron2's model zoo holds pickled dicts of NumPy arrays; converted Swin weights are pickled dicts of torch tensors.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..limits import MAX_PICKLE_BYTES, MAX_PICKLE_STEPS, MAX_UNPACKED

_KINDS = "fiub"  # dtypes: float, signed and unsigned integer, bool
_TEXT = "SU"  # dtypes of text


class _Type:
    """Stand-in for numpy.dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">", "|", "=") else "="

    def build(self) -> np.dtype[Any]:
        dtype = np.dtype(self.name)
        if dtype.kind not in _KINDS + _TEXT or dtype.shape or not dtype.itemsize:
            kind = "objects" if dtype.kind == "O" else self.name
            raise pickle.UnpicklingError(f"an array of {kind}")
        order: Any = self.order
        built: np.dtype[Any] = dtype.newbyteorder(order)
        return built


class _Array:
    """Stand-in for numpy.ndarray."""

    value: Tensor | list[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("an array without a dtype")
        dtype = kind.build()
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        self.value = _tensor(raw, dtype, tuple(shape), "F" if fortran else "C")


def _tensor(raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Tensor | list[Any]:
    """A tensor; a list for an array of text."""
    stored: np.ndarray[Any, Any] = np.ndarray(shape, dtype, raw, order=order)
    if dtype.kind in _TEXT:
        texts: list[Any] = np.atleast_1d(stored).tolist()
        return texts
    return torch.from_numpy(np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C"))


def _from_buffer(data: Any, kind: _Type, shape: tuple[int, ...], order: str = "C") -> _Array:
    array = _Array()
    array.value = _tensor(bytes(data), kind.build(), tuple(shape), order)
    return array


def _scalar(kind: _Type, data: Any) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, kind.build())[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _nothing() -> bytes:
    """Early protocols write empty bytes as a call without arguments."""
    return b""


def _storage(data: bytes) -> Any:
    check_torch(io.BytesIO(data))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _rebuild(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, (torch.storage.TypedStorage, torch.storage.UntypedStorage)):
        raise pickle.UnpicklingError("a tensor without a storage")
    rebuilt: Tensor = torch._utils._rebuild_tensor(  # type: ignore[no-untyped-call]
        storage, offset, tuple(size), tuple(stride)
    )
    return rebuilt


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(values)


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts)).replace("//", "/")


class _Namespace:
    """Stand-in for argparse.Namespace, the settings that many trainers save."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values = dict(state)


class _Settings:
    """Stand-in for the dicts of settings of other projects."""

    def __new__(cls, *_: Any) -> Any:  # torch fills instances of OrderedDict only
        return OrderedDict()


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _factory(*_: Any) -> Any:
    """Stand-in for the type that makes the default values of a defaultdict."""
    raise pickle.UnpicklingError("a call of a type")


#: Standard types without effects, whose values are no larger than their pickles: they are built as they are.
_STANDARD = (Counter, set, frozenset, complex, datetime, date, timedelta, timezone)
_SETTINGS = ("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
             "easydict.EasyDict", "mmengine.config.config.ConfigDict")  # fmt: skip

_NUMPY: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (f"numpy.{core}.{module}", name): maker
        for core in ("core", "_core")
        for module, name, maker in (
            ("multiarray", "_reconstruct", lambda *_: _Array()),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("argparse", "Namespace"): _Namespace,
    ("types", "SimpleNamespace"): _Namespace,
    ("collections", "defaultdict"): _default_dict,
    **{(kind.__module__, kind.__name__): kind for kind in _STANDARD},
    **{("builtins", kind.__name__): _factory for kind in (dict, float, int, list, str, tuple)},
    **{(module, name): _Settings for module, _, name in (entry.rpartition(".") for entry in _SETTINGS)},
    **{("pathlib", name): _path for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")},
}
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    **_NUMPY,
    ("__builtin__", "bytes"): _nothing,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): _size,
}


#: A call of bytearray with a number takes this number of bytes.
_ZEROS = ("builtins bytearray", "__builtin__ bytearray")


class _Reader(pickle.Unpickler):
    """An unpickler that replaces known names by the stand-ins above and refuses all other names."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__builtin__" and name != "bytes":  # names of protocol 2
            module = "builtins"
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return _STAND_INS[module, name]


def count_steps(file: BinaryIO, limit: int) -> int:
    """Read a pickle without executing it, and return its number of steps.

    Raises:
        pickle.UnpicklingError: if it has more steps than `limit`, or makes zeros of any number.
        ValueError: if it is not a pickle.
    """
    steps = 0
    for _, name, _ in pickletools.genops(file):
        steps += 1
        if name in _ZEROS:  # torch accepts it
            raise pickle.UnpicklingError("it calls builtins.bytearray")
        if steps > limit:
            raise pickle.UnpicklingError(f"more than {MAX_PICKLE_STEPS} values")
    return steps


def check_torch(file: BinaryIO) -> None:
    """Check the sizes of a file of `torch.save`, before it is unpacked; the file is rewound.

    Raises:
        pickle.UnpicklingError: if it unpacks to more than `limits.py` allows.
    """
    size = file.seek(0, os.SEEK_END)
    is_zip = zipfile.is_zipfile(file)  # moves the position
    file.seek(0)
    if is_zip:
        with zipfile.ZipFile(file) as bundle:
            entries = bundle.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise pickle.UnpicklingError("it calls torch.jit.load")
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED * size:
                raise pickle.UnpicklingError(f"it unpacks to more than {MAX_UNPACKED} times its size")
            for entry in entries:
                if entry.filename.endswith(".pkl") and entry.file_size <= MAX_PICKLE_BYTES:
                    entry.CRC = None  # type: ignore[assignment] # torch can save files without checksums
                    count_steps(io.BytesIO(bundle.read(entry)), MAX_PICKLE_STEPS)
                elif entry.filename.endswith(".pkl"):
                    raise pickle.UnpicklingError(f"a pickle of more than {MAX_PICKLE_BYTES} bytes")
    else:
        # The format before torch 1.6: magic number, version, system, content, names of the storages.
        steps = 0
        for _ in range(5):
            steps += count_steps(file, MAX_PICKLE_STEPS - steps)
    file.seek(0)


def load_pickle(path: Path) -> Any:
    """Load a pickle, with arrays as tensors.

    Raises:
        pickle.UnpicklingError: if it holds anything but arrays and plain values.
    """
    with path.open("rb") as file:
        count_steps(file, MAX_PICKLE_STEPS)
        file.seek(0)
        return _plain(_Reader(file, encoding="latin1").load(), {})


def load_torch(path: Path) -> Any:
    """Load a file of `torch.save`, with NumPy arrays as tensors, an argparse.Namespace as a dict and paths as text.

    Raises:
        pickle.UnpicklingError: if it holds anything but tensors, arrays and plain values.
    """
    stand_ins: list[Any] = [(maker, f"{module}.{name}") for (module, name), maker in _NUMPY.items()]
    # Before version 2.6, torch accepts no stand-ins: files with arrays are then refused.
    accept: AbstractContextManager[None] = (
        torch.serialization.safe_globals(stand_ins) if torch.__version__ >= "2.6" else nullcontext()
    )
    with path.open("rb") as file:
        check_torch(file)
    with accept, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other protocols than torch's
        return _plain(torch.load(path, map_location="cpu", weights_only=True), {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """A value with tensors for arrays.

    Args:
        value: the content of a pickle.
        done: results by `id`.  A container may be referred to many times and is converted once.
    """
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Namespace):
        value = value.values
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = {key: _plain(item, done) for key, item in value.items()}
    elif type(value) in (list, tuple):
        done[id(value)] = type(value)(_plain(item, done) for item in value)
    else:
        return value
    return done[id(value)]
