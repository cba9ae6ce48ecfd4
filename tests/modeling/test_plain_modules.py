"""Layers are called as modules: hooks, adapters, quantised layers and subclasses work, and streams compile."""

import copy
import logging

import pytest
import torch
from torch import nn

from local2global.modeling.backbone import ResNet

SIZES = [16, 16, 32, 32]
#: Layers that torch or this package reads without calling them, with the reason.
NOT_CALLED = {
    "out_proj": "nn.MultiheadAttention reads its output projection's weight",
    "label_enc": "loaded from checkpoints, not used",
}


@pytest.fixture
def model(tiny):
    channels = {f"res{i + 2}": c for i, c in enumerate(SIZES)}
    return tiny(backbone=ResNet([1, 1, 1, 1], SIZES, 8), channels=channels, scale=0.1)


def outputs(model, frames):
    return [(p.logits, p.boxes, p.masks) for p in model.stream(frames)]


def replace_module(model, name, module):
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_a_hook_fires_on_every_layer_in_one_forward(model, make_clip, train):
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
    fired, expected = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, kinds) and not any(part in name for part in NOT_CALLED):
            expected.add(name)
            module.register_forward_hook(lambda *_, name=name: fired.add(name))
    clip = make_clip([[1, 1]])
    if train:
        model.train()([clip])
    else:
        list(model.eval().stream(clip.frames))
    assert expected - fired == set()


def test_a_backward_hook_sees_every_linear_and_convolution(model, make_clip):
    """Layers' outputs are not modified in place, which full backward hooks forbid."""
    fired, expected = set(), set()
    for name, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and trained and "out_proj" not in name:
            expected.add(name)
            module.register_full_backward_hook(lambda *_, name=name: fired.add(name))
    sum(model.train()([make_clip([[1, 1]])]).values()).backward()
    assert expected - fired == set()


class LoRA(nn.Module):
    """y = W x + B A x, with A and B of rank 2."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.b = nn.Parameter(torch.randn(base.out_features, 2) * 0.3)

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def linears(model):
    """Names of the linear layers that take part in evaluation and training."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in NOT_CALLED)
    ]


def test_a_lora_adapter_around_any_linear_changes_the_losses_and_is_trained(model, make_clip):
    clip = make_clip([[1, 1]])
    model.train()
    before = model([clip])
    for name in linears(model):
        adapted = copy.deepcopy(model)
        adapter = LoRA(adapted.get_submodule(name))
        replace_module(adapted, name, adapter)
        losses = adapted([clip])
        assert any(not torch.equal(losses[key], before[key]) for key in before), name
        sum(losses.values()).backward()
        assert adapter.a.grad.any(), name
        assert adapter.b.grad.any(), name


def test_a_dynamically_quantised_model_predicts_almost_the_same(model, make_clip):
    frames = make_clip([[1, 1]]).frames
    model.eval()
    feed_forward = {name for name in linears(model) if ".ffn." in name}
    quantised = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {name: torch.ao.quantization.default_dynamic_qconfig for name in feed_forward}
    )
    for expected, found in zip(outputs(model, frames), outputs(quantised, frames), strict=True):
        assert not torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[0], expected[0], atol=0.2, rtol=0.2)


class Halved(nn.Conv2d):
    def forward(self, x):
        return 0.5 * super().forward(x)


def test_a_subclass_of_a_convolution_is_called(model, make_clip):
    frames = make_clip([[1]]).frames
    model.eval()
    (before,) = outputs(model, frames)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d:
            halved = copy.deepcopy(module)
            halved.__class__ = Halved
            replace_module(model, name, halved)
            (after,) = outputs(model, frames)
            assert not torch.equal(after[2], before[2]), name
            replace_module(model, name, module)


@pytest.mark.slow
def test_a_compiled_stream_predicts_what_an_eager_one_does(tiny, make_clip):
    frames = make_clip([[1, 1, 1]]).frames
    model = tiny().eval()
    compiled = copy.deepcopy(model)
    seconds = compiled.compile_stream(tuple(frames.shape[-2:]))
    assert seconds > 0
    for expected, found in zip(outputs(model, frames), outputs(compiled, frames), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_code_holds_the_weights_until_the_stream_is_compiled_again(model, make_clip):
    """Weights that are not in the code could be neither packed nor folded into convolutions."""
    frames = make_clip([[1]]).frames
    size = tuple(frames.shape[-2:])
    model.eval().compile_stream(size)
    (before,) = outputs(model, frames)
    with torch.no_grad():
        model.segmenter.backbone.stem["conv1"].conv.weight.mul_(-1)
    (held,) = outputs(model, frames)
    assert torch.equal(held[2], before[2])
    eager = copy.deepcopy(model)
    model.compile_stream(size)
    torch.testing.assert_close(outputs(model, frames), outputs(eager, frames), atol=1e-4, rtol=1e-4)
    assert not torch.equal(outputs(model, frames)[0][2], before[2])


def test_without_a_cpp_compiler_one_warning_is_logged_and_eager_runs(tiny, make_clip, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, frames = tiny().eval(), make_clip([[1]]).frames
    expected = outputs(model, frames)
    with caplog.at_level(logging.WARNING):
        assert model.compile_stream() == 0
    (record,) = caplog.records
    assert "no C++ compiler" in record.getMessage()
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, frames)[0], expected[0], strict=True))
