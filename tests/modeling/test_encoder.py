"""The pixel encoder: order of levels, what counts as padding, sine positions."""

import math

import pytest
import torch
from torch import nn

from local2global.modeling.encoder import PixelEncoder, grid_sine_embedding
from local2global.structures import padded_pixels

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


def maps(batch=1, size=(64, 96)):
    return {
        name: torch.randn(batch, channels, size[0] // stride, size[1] // stride)
        for (name, channels), stride in zip(CHANNELS.items(), (4, 8, 16, 32), strict=True)
    }


@pytest.fixture(scope="module")
def encoder(stirred):
    torch.manual_seed(0)
    return stirred(PixelEncoder(CHANNELS, 16, 2, 2, 24, 4, groups=4), 0.1)


def test_features_have_the_coarsest_level_first(encoder):
    features = encoder(maps(), torch.ones(1, 2))
    assert features.shapes == ((1, 2), (2, 3), (4, 6), (8, 12))
    assert features.memory.shape == (1, 2 + 6 + 24 + 96, 16)
    assert features.mask_features.shape == (1, 16, 16, 24)
    assert features.extent.tolist() == [[24, 16]]
    assert not features.padding.any()
    assert not padded_pixels(features.extent, 16, 24).any()


def test_without_layers_tokens_are_the_projected_maps():
    """Without attention, the tokens of a level are its projected map, row by row."""
    encoder = PixelEncoder(CHANNELS, 16, 2, 0, 24, 4, groups=4)
    inputs = maps()
    features = encoder(inputs, torch.ones(1, 2))
    levels = features.memory.split([h * w for h, w in features.shapes], dim=1)
    for level, i, name in zip(levels, (3, 2, 1, 0), ("res5", "res5", "res4", "res3"), strict=True):
        expected = encoder.input_proj[i](inputs[name]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(level, expected)
    assert encoder.input_proj[3][0].stride == (2, 2)


def test_levels_of_equal_size_keep_their_order():
    """In a 32-pixel frame, res5 and the stride-64 level have one token each; the stride-64 level comes first."""
    encoder = PixelEncoder(CHANNELS, 16, 2, 0, 24, 4, groups=4)
    inputs = maps(size=(32, 32))
    features = encoder(inputs, torch.ones(1, 2))
    assert features.shapes == ((1, 1), (1, 1), (2, 2), (4, 4))
    torch.testing.assert_close(features.memory[:, 0], encoder.input_proj[3](inputs["res5"])[..., 0, 0])


def test_checkpointing_does_not_change_gradients(encoder):
    inputs, gradients = maps(), []
    for encoder.checkpointing in (False, True):
        features = encoder(inputs, torch.ones(1, 2))
        loss = features.memory.square().sum() + features.mask_features.sum()
        gradients.append(torch.autograd.grad(loss, list(encoder.parameters())))
    encoder.checkpointing = False
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_every_parameter_trains(encoder):
    features = encoder(maps(), torch.ones(1, 2))
    (features.memory.square().sum() + features.mask_features.square().sum()).backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_tokens_that_lie_wholly_outside_the_frame_are_padding(encoder):
    """A frame of 48 x 40 pixels in 96 x 64: at stride 32, columns 0..1 and rows 0..1; at stride 16, 0..2 and 0..2."""
    features = encoder(maps(), torch.tensor([[48 / 96, 40 / 64]]))
    padding = [
        p[0].unflatten(0, s)
        for p, s in zip(features.padding.split([2, 6, 24, 96], dim=1), features.shapes, strict=True)
    ]
    for level, (columns, rows) in zip(padding, ((1, 1), (2, 2), (3, 3), (6, 5)), strict=True):
        inside = torch.zeros_like(level)
        inside[:rows, :columns] = True
        assert torch.equal(level, ~inside)
    assert features.extent.tolist() == [[12, 10]]


def test_extent_is_exact_for_every_frame_width(tiny):
    """Float rounding must not turn 28 mask pixels of a 112-pixel frame in a 416-pixel batch into 28.000002."""
    encoder = PixelEncoder({"res2": 1, "res3": 1, "res4": 1, "res5": 1}, 4, 1, 0, 4, 3, groups=1)
    wrong = []
    for width in (352, 416, 448, 608, 1344):
        widths = torch.arange(4, width + 1, 4)
        inputs = {
            name: torch.zeros(1, 1, 32 // stride, width // stride).expand(len(widths), -1, -1, -1)
            for name, stride in zip(("res2", "res3", "res4", "res5"), (4, 8, 16, 32), strict=True)
        }
        valid = torch.tensor([(w / width, 1.0) for w in widths.tolist()], dtype=torch.float32)
        features = encoder(inputs, valid)
        inside = (~padded_pixels(features.extent, *features.mask_features.shape[-2:])[:, 0]).sum(dim=1)
        wrong += [(w, width, 4) for w, n in zip(widths.tolist(), inside.tolist(), strict=True) if n != w / 4]
        tokens = [h * w for h, w in features.shapes]
        for stride, level in zip((32, 16, 8), features.padding.split(tokens, dim=1), strict=True):
            inside = (~level).sum(dim=1) // (32 // stride)
            wrong += [
                (w, width, stride)
                for w, n in zip(widths.tolist(), inside.tolist(), strict=True)
                if n != math.ceil(w / stride)
            ]
    assert not wrong


def test_noise_in_padding_after_group_norm_does_not_change_tokens(encoder, monkeypatch):
    """The padded part of every projected map is replaced by noise; tokens inside the frame do not change."""
    inputs, valid = maps(), torch.tensor([[0.5, 0.5]])
    project = PixelEncoder.project
    clean = encoder(inputs, valid)

    def noisy(self, given):
        sources = project(self, given)
        for source in sources:
            height, width = source.shape[-2:]
            inside = torch.zeros(height, width, dtype=torch.bool)
            inside[: math.ceil(height / 2), : math.ceil(width / 2)] = True
            source[..., ~inside] = 50 * torch.randn_like(source[..., ~inside])
        return sources

    monkeypatch.setattr(PixelEncoder, "project", noisy)
    with torch.no_grad():
        other = encoder(inputs, valid)
    inside = ~clean.padding[0]
    torch.testing.assert_close(other.memory[0, inside], clean.memory[0, inside], atol=1e-5, rtol=0)


def test_grid_positions_by_hand():
    """Four features: sin and cos of y, then of x; the last pixel of the frame is at 2 pi."""
    embed = grid_sine_embedding(torch.tensor([[2.0, 1.0]]), 1, 4, 4)[0]
    turn = 2 * math.pi
    expected = [
        [math.sin(turn), math.cos(turn), math.sin(x), math.cos(x)] for x in (turn / 2, turn, turn, turn)
    ]
    torch.testing.assert_close(embed, torch.tensor(expected), atol=2e-5, rtol=0)


def test_grid_positions_do_not_depend_on_padding():
    alone = grid_sine_embedding(torch.tensor([[5.0, 3.0]]), 3, 5, 16).unflatten(1, (3, 5))
    padded = grid_sine_embedding(torch.tensor([[5.0, 3.0]]), 6, 8, 16).unflatten(1, (6, 8))
    torch.testing.assert_close(padded[:, :3, :5], alone)


def test_unknown_features_are_named_in_the_error():
    with pytest.raises(ValueError, match="res9"):
        PixelEncoder(CHANNELS, 16, features=("res3", "res9"))


def test_norms_are_group_norms(encoder):
    assert [m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)] == [4] * 6
