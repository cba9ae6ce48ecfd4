"""Local queries, heads, and what leaves a frame."""

import dataclasses
import math

import pytest
import torch

from local2global.boxes import mask_to_box
from local2global.modeling.layers import mask_logits
from local2global.modeling.segmenter import proposal_anchors
from local2global.structures import Positions


@pytest.fixture
def segmenter(tiny):
    return tiny().segmenter


@pytest.fixture
def features(features_of):
    return features_of(valid=((1.0, 1.0), (0.5, 0.75)))


def positions(batch=2, current=True):
    boxes = torch.rand(batch, 6, 4) * 0.5 + 0.2
    return Positions(torch.zeros(batch, 6, 32), boxes, current)


def test_a_proposal_is_twice_as_wide_on_every_finer_level(features_of):
    """Counted from the coarsest: .05, .1, .2, as released MaskDINO weights expect."""
    features = features_of()
    memory, anchors = proposal_anchors(features)
    sizes = anchors.sigmoid()[0, :, 2:]
    for i, level in enumerate(sizes.split([6, 24, 96])):
        torch.testing.assert_close(level, torch.full_like(level, 0.05 * 2**i))
    torch.testing.assert_close(anchors.sigmoid()[0, 5, :2], torch.tensor([2.5 / 3, 1.5 / 2]))
    assert torch.equal(memory, features.memory)


def test_proposals_stand_in_the_frames_own_coordinates(features):
    """Half of the width is frame: column 0 of 4 x 6 has its centre at .5 / 3 of the frame."""
    _, anchors = proposal_anchors(features)
    torch.testing.assert_close(anchors[1, 6, :2].sigmoid(), torch.tensor([0.5 / 3, 0.5 / 3]))
    assert anchors[1, features.padding[1]].isinf().all()


def test_local_queries_are_the_most_confident_tokens_in_order(segmenter, features):
    local = segmenter.propose(features)
    memory, _ = proposal_anchors(features)
    tokens = segmenter.enc_output_norm(segmenter.enc_output(memory))
    scores = segmenter.class_embed(tokens).amax(-1).masked_fill(features.padding, -torch.inf)
    expected = torch.stack([t[s.argsort(descending=True)[:6]] for t, s in zip(tokens, scores, strict=True)])
    torch.testing.assert_close(local.embed, expected)


def test_padded_tokens_are_never_proposed(segmenter, features):
    """However confident the noise in padding is."""
    noisy = dataclasses.replace(
        features,
        memory=features.memory + 1e3 * torch.randn_like(features.memory) * features.padding[..., None],
    )
    one, other = segmenter.propose(features), segmenter.propose(noisy)
    torch.testing.assert_close(one.embed, other.embed)
    torch.testing.assert_close(one.predictions.boxes, other.predictions.boxes)
    assert one.predictions.boxes.isfinite().all()


def test_local_content_is_detached_and_its_predictions_are_not(segmenter, features):
    local = segmenter.propose(features)
    assert not local.embed.requires_grad
    assert not local.boxes.requires_grad
    for value in (local.predictions.logits, local.predictions.boxes, local.predictions.mask_embed):
        assert value.requires_grad


def test_local_boxes_are_mask2box_with_the_encoders_box_as_fallback(segmenter, features):
    local = segmenter.propose(features)
    masks = mask_logits(local.predictions.mask_embed, features.mask_features, features.extent)
    expected = mask_to_box(masks, local.predictions.boxes, features.extent[:, None])
    torch.testing.assert_close(local.boxes, expected)
    for layer in segmenter.mask_embed.layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    local = segmenter.propose(features)
    torch.testing.assert_close(local.boxes, local.predictions.boxes)


def test_frames_with_too_few_tokens_are_refused(segmenter, features_of):
    with pytest.raises(ValueError, match="larger frames"):
        segmenter.propose(features_of(shapes=((1, 1), (1, 1), (1, 2))))


def test_heads_read_a_twice_normed_stream_and_layer_0_a_once_normed_one(segmenter, features):
    """MaskDINO's heads norm what the decoder has normed already."""
    segmenter.train()
    embed, where = torch.randn(2, 6, 32), positions()
    local = segmenter.propose(features).predictions
    answer = segmenter.decode(embed, where, features, local)
    norm = segmenter.decoder.norm
    raw = segmenter.decoder(embed, where.boxes, features)
    torch.testing.assert_close(answer.layers[0].logits, segmenter.class_embed(norm(embed)))
    torch.testing.assert_close(answer.layers[0].mask_embed, segmenter.mask_embed(norm(embed)))
    assert answer.layers[0].boxes is None
    assert len(answer.layers) == 3
    for i, layer in enumerate(answer.layers[1:]):
        twice = norm(norm(raw.raw[i]))
        torch.testing.assert_close(layer.logits, segmenter.class_embed(twice))
        torch.testing.assert_close(layer.mask_embed, segmenter.mask_embed(twice))
        torch.testing.assert_close(layer.boxes, segmenter.decoder.refine(norm(raw.raw[i]), raw.references[i]))
    assert torch.equal(answer.logits, answer.layers[-1].logits)
    assert torch.equal(answer.boxes, answer.layers[-1].boxes)
    torch.testing.assert_close(answer.queries.embed, raw.raw[-1])
    assert answer.local is local


def test_what_propagates_is_the_unnormed_stream_and_the_box_of_the_mask(segmenter, features):
    where = positions()
    answer = segmenter.eval().decode(torch.randn(2, 6, 32), where, features, None)
    expected = mask_to_box(answer.masks, where.boxes, features.extent[:, None])
    torch.testing.assert_close(answer.queries.boxes, expected)
    assert not answer.queries.boxes.requires_grad
    assert not answer.masks.requires_grad
    assert answer.layers == ()
    assert answer.local is None


def test_evaluation_answers_what_training_answers(segmenter, features):
    embed, where = torch.randn(2, 6, 32), positions()
    with torch.no_grad():
        one = segmenter.train().decode(embed, where, features, segmenter.propose(features).predictions)
        other = segmenter.eval().decode(embed, where, features, None)
    for name in ("logits", "boxes", "masks"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_an_object_that_vanishes_keeps_its_last_box(segmenter, features):
    for layer in segmenter.mask_embed.layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    where = positions()
    answer = segmenter.decode(torch.randn(2, 6, 32), where, features, None)
    torch.testing.assert_close(answer.queries.boxes, where.boxes)


def test_without_a_trajectory_the_decoder_starts_where_the_queries_masks_are_now(segmenter, features):
    embed, where = torch.randn(2, 6, 32), positions(current=False)
    first = segmenter.mask_embed(segmenter.decoder.norm(embed))
    masks = mask_logits(first, features.mask_features, features.extent)
    now = Positions(where.embed, mask_to_box(masks, where.boxes, features.extent[:, None]))
    one = segmenter.decode(embed, where, features, None)
    other = segmenter.decode(embed, now, features, None)
    torch.testing.assert_close(one.logits, other.logits)
    last = segmenter.decode(embed, dataclasses.replace(where, current=True), features, None)
    assert not torch.allclose(last.logits, one.logits)


def test_logits_that_rank_are_full_precision(segmenter, features):
    with torch.autocast("cpu", torch.bfloat16):
        local = segmenter.propose(features)
        answer = segmenter.decode(local.embed, positions(), features, local.predictions)
        located = local.boxes
    for value in (local.predictions.logits, local.predictions.boxes, located):
        assert value.dtype == torch.float32
    for value in (answer.logits, answer.boxes, answer.masks, answer.queries.boxes):
        assert value.dtype == torch.float32


def test_every_class_starts_at_one_percent(tiny):
    bias = tiny(scale=0).segmenter.class_embed.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01))
    assert math.isclose(bias[0].item(), -math.log(99), rel_tol=1e-6)


def test_label_enc_is_there_for_loading_and_does_not_train(segmenter):
    assert "label_enc.weight" in segmenter.state_dict()
    assert not segmenter.label_enc.weight.requires_grad
