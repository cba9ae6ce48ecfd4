"""The Swin backbone: four maps, and the official code's names on disk."""

import sys

import pytest
import torch

from local2global.errors import UserError
from local2global.modeling.swin import Swin

SMALL = {
    "embed_dim": 16,
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 4, 8),
    "window_size": 4,
    "drop_path_rate": 0.0,
}


@pytest.fixture(scope="module")
def small():
    pytest.importorskip("transformers", reason="the Swin backbone needs transformers")
    return Swin(**SMALL).eval()


@torch.no_grad()
def test_maps_have_strides_4_to_32_for_any_size(small):
    maps = small(torch.randn(1, 3, 64, 96))
    shapes = {name: tuple(m.shape[1:]) for name, m in maps.items()}
    assert shapes == {"res2": (16, 16, 24), "res3": (32, 8, 12), "res4": (64, 4, 6), "res5": (128, 2, 3)}
    assert small.channels == {"res2": 16, "res3": 32, "res4": 64, "res5": 128}


@torch.no_grad()
def test_names_on_disk_are_the_official_codes(small):
    """Queries, keys and values are saved as one matrix, in that order, and load again."""
    state = small.state_dict()
    block = "layers.2.blocks.1"
    assert {
        f"{block}.attn.qkv.weight",
        f"{block}.mlp.fc1.bias",
        "patch_embed.norm.weight",
        "norm3.bias",
    } <= set(state)
    assert not [name for name in state if name.startswith("network.") or ".attn.q." in name]
    attention = small.network.swin.encoder.layers[2].blocks[1].attention
    query = next(
        p for name, p in attention.named_parameters() if "q_proj.bias" in name or "query.bias" in name
    )
    query.add_(1.0)
    assert torch.equal(small.state_dict()[f"{block}.attn.qkv.bias"][:64], query)
    other = Swin(**SMALL).eval()
    report = other.load_state_dict(small.state_dict())
    assert not report.missing_keys
    assert not report.unexpected_keys
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(image)["res5"], small(image)["res5"])


def test_every_parameter_gets_a_gradient():
    model = Swin(**SMALL).train()
    sum(m.sum() for m in model(torch.randn(1, 3, 64, 64)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.detrex
@torch.no_grad()
def test_maps_are_those_of_detectron2s_swin(small):
    """The same weights under the same names give the same maps (with patch norm, as in released weights)."""
    pytest.importorskip("detectron2")
    from detectron2.modeling.backbone.swin import SwinTransformer

    real = SwinTransformer(
        embed_dim=16,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        drop_path_rate=0.0,
        patch_norm=True,
    ).eval()
    assert not small.load_state_dict(
        {k: v for k, v in real.state_dict().items() if "relative_position_index" not in k}, strict=False
    ).missing_keys
    image = torch.randn(1, 3, 80, 112)
    for ours, theirs in zip(small(image).values(), real(image).values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "local2global\[swin\]"'):
        Swin()
