"""Checkpoints: atomic writes, plain content, and reports of what was loaded."""

import argparse
import pickle
import sys
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from local2global.errors import UserError
from local2global.weights.checkpoint import find_config, load_checkpoint, load_weights, save_checkpoint


def model():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_a_saved_checkpoint_is_loaded_unchanged(tmp_path):
    content = {"model": model().state_dict(), "iteration": 7, "nested": [{"a": (1.5, None, True)}, "word"]}
    save_checkpoint(tmp_path / "new" / "a.pth", content)
    read = load_checkpoint(tmp_path / "new" / "a.pth")
    assert read["nested"] == content["nested"]
    assert torch.equal(read["model"]["0.weight"], content["model"]["0.weight"])


def test_a_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"iteration": 1})

    def crash(content, file):
        file.write(b"half of")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(UserError, match=r"a\.pth: cannot be written \(disk full\)"):
        save_checkpoint(path, {"iteration": 2})
    assert load_checkpoint(path) == {"iteration": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [np.float64(1), {1, 2}, model(), print])
def test_only_tensors_and_plain_values_are_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"checkpoint\.outer\[0\]"):
        save_checkpoint(tmp_path / "a.pth", {"outer": [value]})
    assert not list(tmp_path.iterdir())


class Evil:
    """An object whose pickle calls a function when it is loaded."""

    def __reduce__(self):
        return (print, ("run",))


def test_unreadable_files_are_reported_in_one_line(tmp_path, capsys):
    good = tmp_path / "good.pth"
    save_checkpoint(good, {"x": torch.zeros(1000)})
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "name.pkl").touch()
    (tmp_path / "name.npz").touch()
    for name in [
        "cut.pth",
        "empty.pth",
        "code.pth",
        "text.pt",
        "text.safetensors",
        "list.pth",
        "name.pkl",
        "none.pth",
    ]:
        with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_safetensors_files_are_loaded(tmp_path):
    save_file(model().state_dict(), tmp_path / "a.safetensors")
    assert load_weights(model(), load_checkpoint(tmp_path / "a.safetensors")).missing == ()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "iteration": 3, "trainer": {}}])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "teacher.", "model.module."]
)
def test_a_state_dict_is_loaded_by_itself_or_from_a_trainers_checkpoint(wrap, prefix):
    source, target = model(), model()
    report = load_weights(target, wrap({prefix + name: value for name, value in source.state_dict().items()}))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    assert report.summary() == ["0: 2 loaded", "1: 2 loaded"]


def test_a_prefix_of_some_names_is_removed_and_other_tensors_are_reported():
    state = {
        **{f"module.{name}": value for name, value in model().state_dict().items()},
        "epoch": torch.tensor(3),
    }
    assert load_weights(model(), state).unexpected == ("epoch",)


def test_a_model_beside_its_teacher_is_refused_with_both_names():
    state = {p + name: value for p in ("model.", "teacher.") for name, value in model().state_dict().items()}
    with pytest.raises(
        UserError, match=r"8 are unknown: model\.0\.weight, .*begin with 'model\.': save these"
    ):
        load_weights(model(), state)


def test_an_unknown_prefix_is_named():
    state = {f"net.student.{name}": value for name, value in model().state_dict().items()}
    with pytest.raises(UserError, match=r"The names that fit begin with 'net\.student\.'"):
        load_weights(model(), state)


def test_arrays_scalars_and_settings_of_other_trainers_are_loaded(tmp_path):
    source, target = model(), model()
    content = {
        "model": {name: value.numpy() for name, value in source.state_dict().items()},
        "best": np.float64(3.5),
        "args": argparse.Namespace(lr=1e-4, sizes=[1, 2]),
        "folder": PurePosixPath("/data/x"),
    }
    torch.save(content, tmp_path / "a.pth")
    read = load_checkpoint(tmp_path / "a.pth")
    load_weights(target, read)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    assert (read["best"], read["args"], read["folder"]) == (3.5, {"lr": 1e-4, "sizes": [1, 2]}, "/data/x")


class CfgNode(dict):
    """The settings of other projects, pickled as a class of their package."""


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl"])
@pytest.mark.parametrize(
    "extra",
    [
        defaultdict(list, a=[1]),
        defaultdict(None, a=1),
        Counter("aab"),
        {1, 2},
        frozenset([1]),
        1j,
        datetime(2020, 1, 2, tzinfo=timezone.utc),
        timedelta(3),
        SimpleNamespace(a=1),
        np.array(["a", "b"]),
        np.array("a"),
        np.random.default_rng(0).bit_generator.state,
        CfgNode(a=CfgNode(b=1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_data_beside_the_weights_are_read(tmp_path, monkeypatch, suffix, extra):
    """Scores, dates, settings and random states that other trainers save."""
    monkeypatch.setattr(CfgNode, "__module__", "yacs.config")
    monkeypatch.setitem(sys.modules, "yacs.config", SimpleNamespace(CfgNode=CfgNode))
    content = {"model": model().state_dict(), "extra": extra}
    path = tmp_path / f"a{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")
    read = load_checkpoint(path)
    assert load_weights(model(), read).missing == ()
    plain = {
        SimpleNamespace: {"a": 1},
        np.ndarray: extra.reshape(-1).tolist() if hasattr(extra, "shape") else 0,
    }
    assert read["extra"] == plain.get(type(extra), extra)


def test_a_torchscript_archive_is_named_without_a_warning(tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pth")
    before = len(recwarn)
    with pytest.raises(UserError, match=r"a\.pth: it contains torch\.jit\.load, which only code can read"):
        load_checkpoint(tmp_path / "a.pth")
    assert len(recwarn) == before


def test_a_state_dict_is_found_beside_a_model_name(tmp_path):
    """Timm and others save the model's name under "model" or "arch"."""
    for other in (None, "l2g", {}):
        assert load_weights(model(), {"model": other, "state_dict": model().state_dict()}).missing == ()
    with pytest.raises(
        UserError, match=r"no tensors in it, only a\. Save the state dict alone, under 'model'"
    ):
        load_weights(model(), {"a": {"b": {"c": torch.zeros(1)}}})


def test_an_unsupported_object_is_named(tmp_path):
    torch.save({"model": model()}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"it contains torch\.nn\.modules\.container\.Sequential, .*state_dict"
    ):
        load_checkpoint(tmp_path / "a.pth")


def test_the_only_state_dict_under_another_key_is_loaded():
    state = model().state_dict()
    assert len(load_weights(model(), {"net": state, "epoch": 3, "optimizer": {"state": {}}}).loaded) == 4
    with pytest.raises(UserError, match=r"several state dicts: net, net_ema\. Save the right one alone"):
        load_weights(model(), {"net": state, "net_ema": state})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to_sparse(), "a sparse tensor"),
        (lambda x: x.to("meta"), "a tensor without data"),
        (lambda x: x.to(torch.complex64), "a complex tensor"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a quantised tensor"),
        (lambda x: x.to(torch.float8_e4m3fn), "a quantised tensor"),
    ],
)
def test_tensors_that_are_no_dense_real_numbers_are_refused(change, kind):
    state = model().state_dict()
    state["0.weight"] = change(state["0.weight"])
    with pytest.raises(UserError, match=rf"^x\.pth: 0\.weight is {kind}"):
        load_weights(model(), state, source="x.pth")


def test_weights_of_another_model_are_refused_and_the_model_is_unchanged():
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(5), "head.x": torch.zeros(1)}
    with pytest.raises(
        UserError, match="weights of another model: 1 tensors fit, 2 are missing, 1 have another"
    ):
        load_weights(target, state)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    with pytest.raises(UserError, match="weights of another model"):
        load_weights(target, {"head.x": torch.zeros(1)}, strict=False)
    with pytest.raises(UserError, match="no tensors"):
        load_weights(target, {"iteration": 3})


def test_the_report_counts_tensors_by_module_and_lists_mismatched_shapes():
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(5), "head.x": torch.zeros(1)}
    report = load_weights(model(), state, strict=False, partial=True)
    assert report.loaded == ("0.weight",)
    assert report.mismatched == (("0.bias", (3,), (5,)),)
    assert report.summary() == [
        "0: 1 loaded, 1 of another shape",
        "1: 2 missing",
        "head: 1 unexpected",
        "0.bias: (5,) for (3,)",
    ]


def test_the_config_is_found_beside_the_weights(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml beside it"):
        find_config(tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").touch()
    assert find_config(tmp_path / "model_final.pth") == tmp_path / "config.yaml"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2e6])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_are_not_finite_or_too_large_are_refused(value, strict):
    target, state = model(), model().state_dict()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state["1.weight"][0, 2] = value
    with pytest.raises(UserError, match=r"^bad\.pth: 1\.weight has a value of"):
        load_weights(target, state, strict=strict, source="bad.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
