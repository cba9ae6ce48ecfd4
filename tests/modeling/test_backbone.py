"""The backbone: detectron2's names on disk, frozen norms, strides of the maps."""

import pytest
import torch
from torch import nn

from local2global.modeling.backbone import FrozenBatchNorm, GroupNorms, ResNet

SMALL = {"depths": (2, 1, 1, 2), "hidden_sizes": (16, 24, 32, 40), "embedding_size": 8}


def detectron2_name(name):
    return name.replace(".conv.", ".")


@pytest.fixture(scope="module")
def small():
    return ResNet(**SMALL)


def test_maps_have_strides_4_to_32(small):
    maps = small(torch.randn(2, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "res2": (2, 16, 16, 24),
        "res3": (2, 24, 8, 12),
        "res4": (2, 32, 4, 6),
        "res5": (2, 40, 2, 3),
    }


def test_names_and_shapes_on_disk_are_detectron2s(shared):
    """R50 against the parameter list of detrex's MaskDINO, in which equal blocks are one line with a count."""
    path = shared / "facts" / "detrex_maskdino_r50_c80_collapsed.txt"
    if not path.is_file():
        pytest.skip(f"no list of MaskDINO's parameters at {path}")
    theirs = {}
    for line in path.read_text().splitlines():
        if line.startswith("backbone."):
            name, shape, _, kind, count = line.removeprefix("backbone.").split("\t")
            key = name, shape, kind.split()[0]
            theirs[key] = theirs.get(key, 0) + int(count[1:])
    with torch.device("meta"):
        network = ResNet()
    trained = {detectron2_name(name) for name, _ in network.named_parameters()}
    ours = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if parts[0] != "stem":
            parts[1] = "*"
        key = ".".join(parts), str(tuple(value.shape)), "param" if name in trained else "buffer"
        ours[key] = ours.get(key, 0) + 1
    assert ours == theirs


def test_saved_weights_load_again(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "a.pth")
    torch.manual_seed(1)
    other = ResNet(**SMALL)
    before = other(torch.ones(1, 3, 64, 64))["res5"]
    report = other.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    assert not report.missing_keys
    assert not report.unexpected_keys
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other(image)["res5"], small(image)["res5"], rtol=0, atol=0)
    assert not torch.equal(before, other(torch.ones(1, 3, 64, 64))["res5"])


def test_names_work_with_a_prefix_and_a_missing_key_is_reported(small):
    model = nn.ModuleDict({"backbone": ResNet(**SMALL)})
    state = {f"backbone.{name}": value for name, value in small.state_dict().items()}
    assert set(model.state_dict()) == set(state)
    del state["backbone.res3.0.conv2.weight"]
    state["backbone.fc.weight"] = torch.zeros(1)
    report = model.load_state_dict(state, strict=False)
    assert len(report.missing_keys) == 1
    assert report.unexpected_keys == ["backbone.fc.weight"]


def test_loading_does_not_change_the_state_dict(small):
    state = small.state_dict()
    names = set(state)
    ResNet(**SMALL).load_state_dict(state)
    assert set(state) == names


def test_norms_are_frozen_buffers_and_the_stem_does_not_train(small):
    assert not [name for name, _ in small.named_parameters() if "norm" in name]
    assert not [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = {detectron2_name(name) for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.conv1.weight"}
    small(torch.randn(1, 3, 64, 64))["res5"].sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


def test_frozen_batch_norm_equals_batch_norm_in_evaluation():
    theirs, ours = nn.BatchNorm2d(5).eval(), FrozenBatchNorm(5)
    for name in ("weight", "bias", "running_mean"):
        getattr(theirs, name).data.normal_()
    theirs.running_var.uniform_(0.5, 2)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    assert not list(ours.parameters())


def test_frozen_batch_norm_is_the_identity_at_initialisation():
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(FrozenBatchNorm(5)(x), x)


def test_strides_are_in_the_3x3_convolutions(small):
    strides = {
        detectron2_name(name + ".weight").removesuffix(".weight"): module.stride[0]
        for name, module in small.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride[0] == 2
    }
    expected = {"stem.conv1"} | {f"res{i}.0.{conv}" for i in (3, 4, 5) for conv in ("conv2", "shortcut")}
    assert set(strides) == expected


def test_a_backbone_with_group_norm_trains_every_parameter():
    network = ResNet((1, 1, 1, 1), (16, 16, 32, 32), 8, "basic", GroupNorms(), freeze_stem=False)
    network(torch.randn(1, 3, 64, 64))["res5"].sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not list(network.buffers())


def test_nothing_is_downloaded(monkeypatch):
    """Two constructions differ: weights are random, not downloaded."""
    import socket

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    one, other = (ResNet(**SMALL).state_dict()["stem.conv1.weight"] for _ in range(2))
    assert not torch.equal(one, other)
