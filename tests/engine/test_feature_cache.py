"""Features of frozen parts are computed once: the same losses, no second encoding, no mixture of weights."""

from __future__ import annotations

import pytest
import torch

from local2global.engine.feature_cache import FeatureCache
from local2global.errors import UserError

FROZEN = [r"^(?!segmenter\.(backbone|encoder)\.)"]


@pytest.fixture
def model(tiny):
    return tiny(trainable=FROZEN).train()


def total(model, *clips):
    return sum(model.losses(clips).values()).item()


def test_losses_equal_those_without_a_cache_and_frames_are_encoded_once(
    model, make_clip, tmp_path, monkeypatch
):
    clips = [make_clip(key=(0, 0, i), seed=i) for i in range(2)]
    expected = total(model, *clips)
    model.feature_cache = cache = FeatureCache(model, tmp_path)
    assert total(model, *clips) == pytest.approx(expected, rel=1e-2)
    assert (cache.encoded, cache.found) == (6, 0)
    monkeypatch.setattr(model, "encode", None)
    again = total(model, *clips[::-1])
    assert again == pytest.approx(expected, rel=1e-2)
    assert (cache.encoded, cache.found) == (6, 6)


def test_a_later_process_finds_the_frames(model, make_clip, tmp_path):
    frames = list(make_clip().frames)
    first = FeatureCache(model, tmp_path)(model, frames)
    cache = FeatureCache(model, tmp_path)
    second = cache(model, [*frames, frames[0]])
    assert (cache.encoded, cache.found) == (0, 4)
    assert second.shapes == first.shapes
    assert torch.equal(second.memory[:3], first.memory)
    assert torch.equal(second.memory[3], first.memory[0])
    torch.testing.assert_close(first.memory, model.encode(frames).memory, atol=2e-3, rtol=2e-3)


def test_gradients_do_not_depend_on_the_cache(model, make_clip, tmp_path):
    parameter = model.segmenter.decoder.layers[0].self_attn.attention.in_proj_weight
    gradients = []
    for cache in (None, FeatureCache(model, tmp_path)):
        model.feature_cache = cache
        (gradient,) = torch.autograd.grad(sum(model.losses([make_clip()]).values()), parameter)
        gradients.append(gradient)
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < difference < 0.05


def test_other_weights_have_a_folder_of_their_own(model, tmp_path):
    before = FeatureCache(model, tmp_path).folder
    with torch.no_grad():
        next(model.segmenter.decoder.parameters()).add_(1)
    assert FeatureCache(model, tmp_path).folder == before
    with torch.no_grad():
        next(model.segmenter.encoder.parameters()).add_(1)
    assert FeatureCache(model, tmp_path).folder != before


def test_frames_of_several_sizes_are_not_stored(model, make_clip, tmp_path):
    frames = [make_clip(size=size).frames[0] for size in ((64, 96), (64, 64))]
    cache = FeatureCache(model, tmp_path)
    assert torch.equal(cache(model, frames).memory, model.encode(frames).memory)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_trained_encoder_is_refused_with_the_setting_that_freezes_it(tiny, tmp_path):
    with pytest.raises(UserError, match=r"is trained, so its features change\. Freeze.*model\.trainable="):
        FeatureCache(tiny(), tmp_path)


def test_a_damaged_file_is_one_line(model, make_clip, tmp_path):
    frames = list(make_clip().frames)
    cache = FeatureCache(model, tmp_path)
    cache(model, frames)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"no")
    with pytest.raises(UserError, match="Delete the folder of the cache"):
        cache(model, frames)
