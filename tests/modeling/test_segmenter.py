"""Local queries, heads, and the predictions of one frame."""

import dataclasses
import math

import pytest
import torch

from local2global.boxes import mask_to_box
from local2global.errors import UserError
from local2global.modeling.decoder import Decoder
from local2global.modeling.layers import mask_logits
from local2global.modeling.segmenter import Segmenter, proposal_anchors
from local2global.structures import Positions, Queries


@pytest.fixture
def segmenter(tiny):
    return tiny().segmenter


def test_sizes_that_do_not_fit_are_refused(segmenter):
    with pytest.raises(UserError, match="dim 7: the decoder has 32"):
        Segmenter(segmenter.backbone, segmenter.encoder, segmenter.decoder, 3, 6, dim=7)
    with pytest.raises(UserError, match="num_queries=0: expected at least 1"):
        Segmenter(segmenter.backbone, segmenter.encoder, segmenter.decoder, 3, 0, dim=32)
    with pytest.raises(UserError, match="num_layers=0: expected at least 1"):
        Decoder(num_layers=0)


@pytest.fixture
def features(features_of):
    """A frame without padding, and one that is half as wide."""
    return features_of(valid=((1.0, 1.0), (0.5, 0.75)))


def queries_of(embed=None):
    """Random slots of two frames with boxes inside the frame."""
    return Queries(torch.randn(2, 6, 32) if embed is None else embed, torch.rand(2, 6, 4) * 0.5 + 0.2)


def at(boxes):
    """Positions with the given boxes, which may be None."""
    return Positions(torch.zeros(2, 6, 32), boxes)


def empty_masks(segmenter):
    """Makes every mask logit 0, so that every mask is empty."""
    for layer in segmenter.mask_embed.layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def test_proposals_double_in_size_on_every_finer_level(features_of):
    """Counted from the coarsest level: .05, .1, .2, as released MaskDINO weights expect."""
    features = features_of()
    memory, anchors = proposal_anchors(features)
    sizes = anchors.sigmoid()[0, :, 2:]
    for i, level in enumerate(sizes.split([6, 24, 96])):
        torch.testing.assert_close(level, torch.full_like(level, 0.05 * 2**i))
    torch.testing.assert_close(anchors.sigmoid()[0, 5, :2], torch.tensor([2.5 / 3, 1.5 / 2]))
    assert torch.equal(memory, features.memory)


def test_proposals_are_in_coordinates_of_the_unpadded_frame(features):
    """The frame is half as wide as the batch: column 0 of 4 x 6 is centred at .5 / 3 of the frame."""
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
    """Even if noise in padding has high scores."""
    noise = 1e3 * torch.randn_like(features.memory) * features.padding[..., None]
    noisy = dataclasses.replace(features, memory=features.memory + noise)
    clean, changed = segmenter.propose(features), segmenter.propose(noisy)
    torch.testing.assert_close(clean.embed, changed.embed)
    torch.testing.assert_close(clean.predictions.boxes, changed.predictions.boxes)
    assert clean.predictions.boxes.isfinite().all()


def test_local_content_and_boxes_are_detached_and_predictions_are_not(segmenter, features):
    local = segmenter.propose(features)
    assert not local.embed.requires_grad
    assert not local.boxes.requires_grad
    for value in (local.predictions.logits, local.predictions.boxes, local.predictions.mask_embed):
        assert value.requires_grad


def test_local_boxes_are_mask2box_with_the_encoders_box_as_fallback(segmenter, features):
    local = segmenter.propose(features)
    masks = mask_logits(local.predictions.mask_embed, features.mask_features, features.extent)
    expected = mask_to_box(masks, local.predictions.boxes, features.extent[:, None])
    torch.testing.assert_close(local.boxes, expected.detach())
    empty_masks(segmenter)
    local = segmenter.propose(features)
    torch.testing.assert_close(local.boxes, local.predictions.boxes.detach())


def test_frames_with_too_few_tokens_raise(segmenter, features_of):
    with pytest.raises(ValueError, match="larger frames"):
        segmenter.propose(features_of(shapes=((1, 1), (1, 1), (1, 2))))


def test_heads_norm_decoder_layers_twice_and_layer_0_once(segmenter, features):
    """MaskDINO's heads norm what the decoder has normed already."""
    segmenter.train()
    slots = queries_of()
    local = segmenter.propose(features).predictions
    predictions = segmenter.decode(slots, at(slots.boxes), features, local)
    norm = segmenter.decoder.norm
    output = segmenter.decoder(slots.embed, slots.boxes, features)
    first, *layers = predictions.layers
    torch.testing.assert_close(first.logits, segmenter.class_embed(norm(slots.embed)))
    torch.testing.assert_close(first.mask_embed, segmenter.mask_embed(norm(slots.embed)))
    assert first.boxes is None
    assert len(layers) == 2
    for i, layer in enumerate(layers):
        hidden = norm(output.raw[i])
        torch.testing.assert_close(layer.logits, segmenter.class_embed(norm(hidden)))
        torch.testing.assert_close(layer.mask_embed, segmenter.mask_embed(norm(hidden)))
        torch.testing.assert_close(layer.boxes, segmenter.decoder.refine(hidden, output.references[i]))
    assert torch.equal(predictions.logits, layers[-1].logits)
    assert torch.equal(predictions.boxes, layers[-1].boxes)
    torch.testing.assert_close(predictions.queries.embed, output.raw[-1])
    assert predictions.local is local


def test_slots_carry_the_unnormed_output_and_the_box_of_the_mask(segmenter, features):
    slots = queries_of()
    predictions = segmenter.eval().decode(slots, at(slots.boxes), features, None)
    expected = mask_to_box(predictions.masks, slots.boxes, features.extent[:, None])
    torch.testing.assert_close(predictions.queries.boxes, expected)
    assert not predictions.queries.boxes.requires_grad
    assert not predictions.masks.requires_grad
    assert predictions.layers == ()
    assert predictions.local is None


@torch.no_grad()
def test_evaluation_and_training_predict_the_same(segmenter, features):
    slots = queries_of()
    local = segmenter.propose(features).predictions
    train = segmenter.train().decode(slots, at(slots.boxes), features, local)
    evaluation = segmenter.eval().decode(slots, at(slots.boxes), features, None)
    for name in ("logits", "boxes", "masks"):
        torch.testing.assert_close(getattr(train, name), getattr(evaluation, name))


def test_a_slot_with_an_empty_mask_keeps_its_last_box(segmenter, features):
    empty_masks(segmenter)
    slots = queries_of()
    predictions = segmenter.decode(slots, at(slots.boxes), features, None)
    torch.testing.assert_close(predictions.queries.boxes, slots.boxes)


def test_without_boxes_the_decoder_starts_from_the_queries_masks_on_this_frame(segmenter, features):
    slots = queries_of()
    mask_embed = segmenter.mask_embed(segmenter.decoder.norm(slots.embed))
    masks = mask_logits(mask_embed, features.mask_features, features.extent)
    located = mask_to_box(masks, slots.boxes, features.extent[:, None])
    found = segmenter.decode(slots, at(None), features, None)
    expected = segmenter.decode(slots, at(located), features, None)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.queries.boxes, expected.queries.boxes)
    assert not torch.allclose(segmenter.decode(slots, at(slots.boxes), features, None).logits, found.logits)


def test_without_boxes_a_query_with_an_empty_mask_starts_from_its_last_box(segmenter, features):
    empty_masks(segmenter)
    slots = queries_of()
    found = segmenter.decode(slots, at(None), features, None)
    expected = segmenter.decode(slots, at(slots.boxes), features, None)
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_logits_boxes_and_masks_are_float32_under_autocast(segmenter, features):
    with torch.autocast("cpu", torch.bfloat16):
        local = segmenter.propose(features)
        slots = Queries(local.embed, local.boxes)
        predictions = segmenter.decode(slots, at(local.boxes), features, local.predictions)
    for value in (local.predictions.logits, local.predictions.boxes, local.boxes):
        assert value.dtype == torch.float32
    for value in (predictions.logits, predictions.boxes, predictions.masks, predictions.queries.boxes):
        assert value.dtype == torch.float32


def test_initial_scores_are_one_percent(tiny):
    bias = tiny(scale=0).segmenter.class_embed.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01))
    assert math.isclose(bias[0].item(), -math.log(99), rel_tol=1e-6)


def test_label_enc_is_in_the_state_dict_and_is_not_trained(segmenter):
    assert "label_enc.weight" in segmenter.state_dict()
    assert not segmenter.label_enc.weight.requires_grad
