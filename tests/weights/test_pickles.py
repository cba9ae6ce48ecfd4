"""Pickled weights: arrays are read and no code runs."""

import collections
import io
import pickle

import numpy as np
import pytest
import torch

from local2global.errors import UserError
from local2global.weights.checkpoint import load_checkpoint


def written(tmp_path, content, protocol=2):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "big": np.arange(3, dtype=">f8"),
    "half": np.float16([1.5]),
    "empty": np.zeros((0, 4), np.float32),
    "flag": np.array(True),
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_dtype_and_protocol_are_read(tmp_path, protocol):
    """The layout of detectron2's model zoo: a dict under "model", and its author."""
    content = {
        "model": collections.OrderedDict(ARRAYS),
        "__author__": "somebody",
        "matching_heuristics": True,
    }
    read = load_checkpoint(written(tmp_path, content, protocol))
    assert (read["__author__"], read["matching_heuristics"]) == ("somebody", True)
    for name, value in ARRAYS.items():
        assert read["model"][name].numpy().dtype == value.dtype.newbyteorder("=")
        assert np.array_equal(read["model"][name].numpy(), value)


def test_tensors_are_read_as_the_swin_converter_writes_them(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    content = {"model": {"x": whole, "part": whole[1:, ::2], "parameter": torch.nn.Parameter(torch.ones(2))}}
    read = load_checkpoint(written(tmp_path, content))["model"]
    assert all(torch.equal(read[name], value.detach()) for name, value in content["model"].items())


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hidden_in_a_storage():
    inner = io.BytesIO()
    torch.save(Runs(exec, "print('run')"), inner)
    return Runs(torch.storage._load_from_bytes, inner.getvalue())


@pytest.mark.parametrize(
    "evil",
    [
        Runs(exec, "print('run')"),
        Runs(eval, "print('run')"),
        np.array([Runs(exec, "print('run')")], dtype=object),
        hidden_in_a_storage(),
        torch.nn.Linear(1, 1),
        Runs(list, "run"),
    ],
    ids=["call", "eval", "object array", "in a storage", "module", "type"],
)
def test_other_objects_are_refused_and_not_run(tmp_path, capsys, evil):
    with pytest.raises(
        UserError,
        match=r"weights\.pkl: (damaged, or more than|it contains .*, which only code)",
    ) as error:
        load_checkpoint(written(tmp_path, {"model": {"x": evil}}))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_a_truncated_pickle_is_reported_in_one_line(tmp_path):
    path = written(tmp_path, {"model": ARRAYS})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"weights\.pkl: damaged"):
        load_checkpoint(path)
