"""Parity with the real detrex and detectron2, on numbers they produced.

Outputs to 1e-5 of max(1, scale), gradients to 1e-4 of their largest entry.

Not read: d1, whose stream was made under a `tgt_mask` that our decoder, having no denoising, does not take; f1b and g2,
the cases of an image without instances.  b3 is compared inside the frame: in padding our sine differs.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from peer_layout import peer_of

from local2global.boxes import box_iou, generalized_box_iou, mask_to_box
from local2global.modeling.backbone import ResNet
from local2global.modeling.decoder import Decoder
from local2global.modeling.encoder import PixelEncoder, grid_sine_embedding
from local2global.modeling.layers import DeformableAttention, inverse_sigmoid, mask_logits, sample_levels
from local2global.modeling.losses import (
    PointSampler,
    dice_loss,
    giou_loss,
    l1_box_loss,
    sample_points,
    sigmoid_ce_loss,
    sigmoid_focal_loss,
)
from local2global.modeling.matcher import Matcher, assign, dice_cost, mask_cost
from local2global.modeling.positions import box_sine_embedding
from local2global.modeling.segmenter import Segmenter, proposal_anchors
from local2global.structures import FrameFeatures, Positions

BOTH = (
    (r"^decoder_norm\.", "decoder.norm."),
    (r"^decoder\.norm\.", "decoder.norm."),
    (r"bbox_embed\.\d+\.", "bbox_embed."),
    (r"^transformer\.level_embed", "level_embed"),
    (r"^transformer\.encoder\.layers", "layers"),
    (r"(layers\.\d+)\.linear(\d)\.", r"\1.ffn.linear\2."),
)
ENCODER = ((r"^(layers\.\d+)\.norm1\.", r"\1.norm."), (r"^(layers\.\d+)\.norm2\.", r"\1.ffn.norm."))
DECODER = (
    (r"(layers\.\d+)\.norm1\.", r"\1.norm."),
    (r"(layers\.\d+)\.norm2\.", r"\1.self_attn.norm."),
    (r"(layers\.\d+)\.norm3\.", r"\1.ffn.norm."),
    (r"(layers\.\d+)\.self_attn\.(in_proj|out_proj)", r"\1.self_attn.attention.\2"),
)


@pytest.fixture(params=["ours", "peer"])
def built(request):
    """A module as it is, or in the layout of the benchmark's peer, which must be as right as ours."""
    return (lambda module: module) if request.param == "ours" else peer_of


@pytest.fixture
def load(golden):
    def read(name):
        path = golden / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden numbers at {path}")
        with np.load(path) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}

    return read


def state(data, extra=()):
    """Upstream's state under our names; int8 states are multiples of 2 ** -8."""
    result = {}
    for key, value in data.items():
        kind, _, name = key.partition("/")
        if kind in ("state", "stateq"):
            for pattern, replacement in BOTH + tuple(extra):
                name = re.sub(pattern, replacement, name)
            result[name] = value.float() / 256 if kind == "stateq" else value
    return result


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.float()
    finite = theirs.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    scale = max(1.0, theirs[finite].abs().max().item()) if finite.any() else 1.0
    torch.testing.assert_close(ours[finite], theirs[finite], atol=tolerance * scale, rtol=0)


def close_gradient(ours, theirs):
    """Relative to the gradient's own largest entry."""
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


def shapes_of(data):
    return tuple((h, w) for h, w in data["in/spatial_shapes"].tolist())


@pytest.mark.parametrize("name", ["a1_msda_ref2_mask", "a2_msda_ref4_seqfirst"])
def test_deformable_attention(load, built, name):
    data = load(name)
    module = built(DeformableAttention(32, 4, 3, 4))
    module.load_state_dict(state(data))
    names = ("query", "value", "query_pos", "reference_points")
    given = {n: data[f"in/{n}"].clone().requires_grad_() for n in names}

    def turn(x):
        return x if "a1" in name else x.transpose(0, 1)

    mask = data.get("in/key_padding_mask")
    out = module(
        turn(given["query"] + given["query_pos"]),
        given["reference_points"],
        turn(given["value"]),
        shapes_of(data),
        None if mask is None else mask.bool(),
    )
    out = turn(out) + given["query"]
    close(out, data["out/output"])
    (out * data["in/cotangent"]).sum().backward()
    for key, value in given.items():
        close_gradient(value.grad, data[f"grad/{key}"])
    for key, value in module.named_parameters():
        close_gradient(value.grad, data[f"grad/state.{key}"])


def test_sampling(load):
    data = load("a3_msda_core")
    value, place, weights = (
        data[f"in/{n}"].clone().requires_grad_() for n in ("value", "sampling_locations", "attention_weights")
    )
    out = sample_levels(value, shapes_of(data), place[..., 0], place[..., 1], weights)
    close(out, data["out/output"])
    (out * data["in/cotangent"]).sum().backward()
    close_gradient(value.grad, data["grad/value"])
    close_gradient(place.grad, data["grad/sampling_locations"])
    close_gradient(weights.grad, data["grad/attention_weights"])


def test_initial_offsets(load):
    close(
        DeformableAttention(32, 4, 3, 4).sampling_offsets.bias,
        load("a4_msda_init")["out/sampling_offsets.bias"],
    )


@pytest.mark.parametrize(
    ("name", "features", "levels"),
    [
        ("b1_pixel_decoder_4lvl_low2high", ("res3", "res4", "res5"), 4),
        ("b2_pixel_decoder_3lvl_high2low", ("res5", "res4", "res3"), 3),
    ],
)
@torch.no_grad()
def test_pixel_encoder(load, built, name, features, levels):
    data = load(name)
    maps = {n: data[f"in/{n}"] for n in ("res2", "res3", "res4", "res5")}
    channels = {n: m.shape[1] for n, m in maps.items()}
    module = built(PixelEncoder(channels, 32, 4, 2, 64, levels, 4, features, 32))
    module.load_state_dict(state(data, ENCODER))
    out = module(maps, torch.ones(2, 2))
    close(out.mask_features, data["out/mask_features"])
    split = out.memory.split([h * w for h, w in out.shapes], dim=1)
    for i, (tokens, shape) in enumerate(zip(split, out.shapes, strict=True)):
        theirs = levels - 1 - i if "low2high" in name else i
        close(tokens.transpose(1, 2).unflatten(-1, shape), data[f"out/multi_scale_features.{theirs}"])


def test_grid_positions(load):
    data = load("b3_position_embedding_sine")

    def ours(counts):
        return grid_sine_embedding(counts, 4, 6, 32).transpose(1, 2).unflatten(-1, (4, 6))

    seen = ~data["in/mask"].bool()
    close(ours(torch.tensor([[6.0, 4.0]] * 2)), data["out/no_mask"])
    embed = ours(torch.stack((seen[:, 0].sum(1), seen[:, :, 0].sum(1)), -1).float())
    inside = seen[:, None].expand(-1, 32, -1, -1)
    assert not inside.all()
    close(embed[inside], data["out/with_mask"][inside])


def test_box_positions(load):
    data = load("c1_sineembed")
    close(box_sine_embedding(data["in/pos4"]), data["out/pos4"])
    close(box_sine_embedding(data["in/pos2"]), data["out/pos2"])


@pytest.mark.parametrize("name", ["nomask", "mask"])
def test_proposals(load, name):
    data = load(f"c2_encoder_output_proposals_{name}")
    shapes, padding = shapes_of(data), data["in/memory_padding_mask"].bool()
    ratios = []
    for part, (h, w) in zip(padding.split([h * w for h, w in shapes], 1), shapes, strict=True):
        seen = ~part.unflatten(1, (h, w))
        ratios.append(torch.stack((seen[:, 0].sum(1) / w, seen[:, :, 0].sum(1) / h), -1))
    features = FrameFeatures(
        data["in/memory"], shapes, padding, torch.zeros(2, 8, 4, 4), torch.ones(2, 2), torch.stack(ratios, 1)
    )
    memory, anchors = proposal_anchors(features)
    close(memory, data["out/output_memory"])
    close(anchors, data["out/output_proposals"])


def test_inverse_sigmoid(load):
    data = load("c3_inverse_sigmoid")
    close(inverse_sigmoid(data["in/x"]), data["out/y"])


def test_decoder(load, built):
    data = load("d3_transformer_decoder_d256_unpatched")
    module = built(Decoder(256, 8, 1, 32, 2, 2))
    module.load_state_dict(state(data, DECODER))
    features = FrameFeatures(
        data["in/memory"].transpose(0, 1),
        shapes_of(data),
        data["in/memory_key_padding_mask"].bool(),
        torch.zeros(1, 1, 1, 1),
        torch.ones(1, 2),
        data["in/valid_ratios"],
    )
    tgt = data["in/tgt"].clone().requires_grad_()
    boxes = data["in/refpoints_unsigmoid"].sigmoid().transpose(0, 1)
    out = module(tgt.transpose(0, 1), boxes, features)
    close(out.hidden[0], data["out/hs.0"])
    close(out.references[0], data["out/references.0"])
    following = module.refine(out.raw[0], out.references[0])
    close(following, data["out/references.1"])
    ((out.hidden[0] * data["in/cotangent.0"]).sum() + following.sum()).backward()
    close_gradient(tgt.grad, data["grad/tgt"])


@pytest.mark.parametrize(
    ("name", "edge", "nothing"),
    [("e1_predictor_eval_mask2box", 0, (1.0, 1, 0, 0)), ("e2_predictor_eval_bitmask", 1, (0.0, 0, 0, 0))],
)
@torch.no_grad()
def test_predictor(load, built, name, edge, nothing):
    data = load(name)
    module = built(Segmenter(None, None, Decoder(32, 4, 2, 64, 3, 4), 5, 6, 32)).train()
    report = module.load_state_dict(state(data, DECODER), strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    maps = [data[f"in/x.{i}"] for i in (2, 1, 0)]
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
    features = FrameFeatures(
        tokens,
        tuple((m.shape[-2], m.shape[-1]) for m in maps),
        torch.zeros(tokens.shape[:2], dtype=torch.bool),
        data["in/mask_features"],
        torch.tensor([[24.0, 16.0]] * 2),
        torch.ones(2, 3, 2),
    )

    def masks_of(layer):
        return mask_logits(layer.mask_embed, features.mask_features, features.extent)

    local = module.propose(features)
    close(local.predictions.logits, data["out/interm_outputs.pred_logits"])
    close(local.predictions.boxes, data["out/interm_outputs.pred_boxes"])
    masks = masks_of(local.predictions)
    close(masks, data["out/interm_outputs.pred_masks"])
    boxes = inverse_sigmoid(mask_to_box(masks, torch.tensor(nothing).expand(2, 6, 4), edge=edge)).sigmoid()
    out = module.decode(local.embed, Positions(torch.zeros(2, 6, 32), boxes), features, local.predictions)
    close(out.logits, data["out/pred_logits"])
    close(out.boxes, data["out/pred_boxes"])
    close(out.masks, data["out/pred_masks"])
    for i in (0, 1):
        close(out.layers[i].logits, data[f"out/aux_outputs.{i}.pred_logits"])
        close(masks_of(out.layers[i]), data[f"out/aux_outputs.{i}.pred_masks"])
    close(out.layers[1].boxes, data["out/aux_outputs.1.pred_boxes"])


def cost_of(matcher, output, data, image, points):
    true = data[f"in/targets.{image}.masks"].float()
    return matcher.cost(
        data[f"in/{output}.pred_logits"][image],
        data[f"in/{output}.pred_boxes"][image],
        sample_points(data[f"in/{output}.pred_masks"][image : image + 1], points)[0],
        data[f"in/targets.{image}.labels"],
        data[f"in/targets.{image}.boxes"],
        sample_points(true[None], points)[0],
    )


def pairs(rows, columns):
    return sorted(zip(rows.tolist(), columns.tolist(), strict=True))


def test_matcher(load):
    data = load("f1_matcher")
    for image in (0, 1):
        cost = cost_of(Matcher(num_points=64), "outputs", data, image, data[f"rng/00{image}_rand"])
        close(cost, data[f"out/cost.{image}"])
        assert pairs(*assign(cost.numpy())) == pairs(
            data[f"out/indices.{image}.src"], data[f"out/indices.{image}.tgt"]
        )


def test_criterion(load):
    """Losses and gradients of four sets of predictions with the draws that detrex made."""
    data = load("f2_criterion")
    sampler, matcher, images = PointSampler(64), Matcher(num_points=64), (0, 1)
    outputs = ("outputs", "outputs.aux_outputs.0", "outputs.aux_outputs.1", "outputs.interm_outputs")
    for j, (output, suffix) in enumerate(zip(outputs, ("", "_0", "_1", "_interm"), strict=True)):
        kinds = ("pred_logits", "pred_boxes", "pred_masks")
        logits, boxes, masks = given = [data[f"in/{output}.{n}"].clone().requires_grad_() for n in kinds]
        matched = []
        for image in images:
            cost = cost_of(matcher, output, data, image, data[f"rng/{4 * j + image:03}_rand"])
            rows, columns = assign(cost.numpy())
            theirs = data[f"out/matching.{j}.{image}.src"], data[f"out/matching.{j}.{image}.tgt"]
            assert pairs(rows, columns) == pairs(*theirs)
            matched.append(theirs)
        wanted = torch.zeros_like(logits)
        for image, (rows, columns) in zip(images, matched, strict=True):
            wanted[image, rows, data[f"in/targets.{image}.labels"][columns]] = 1.0
        candidates = torch.cat([data[f"rng/{4 * j + i:03}_rand"] for i in (2, 3)], dim=1)
        owned = torch.cat([masks[i, rows] for i, (rows, _) in zip(images, matched, strict=True)])[:, None]
        true = torch.cat(
            [
                data[f"in/targets.{i}.masks"][columns].float()
                for i, (_, columns) in zip(images, matched, strict=True)
            ]
        )[:, None]
        chosen = sampler.choose(sample_points(owned.detach(), candidates)[:, 0])
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        close(points, data[f"out/point_coords.{j}"])
        drawn, truth = sample_points(owned, points)[:, 0], sample_points(true, points)[:, 0]
        mine = torch.cat([boxes[i, rows] for i, (rows, _) in zip(images, matched, strict=True)])
        theirs = torch.cat(
            [data[f"in/targets.{i}.boxes"][columns] for i, (_, columns) in zip(images, matched, strict=True)]
        )
        losses = {
            "ce": sigmoid_focal_loss(logits, wanted).sum(),
            "mask": sigmoid_ce_loss(drawn, truth).sum(),
            "dice": dice_loss(drawn, truth).sum(),
            "bbox": l1_box_loss(mine, theirs).sum(),
            "giou": giou_loss(mine, theirs).sum(),
        }
        for term, value in losses.items():
            close(value / 4, data[f"out/loss_{term}{suffix}"])
        (sum(losses.values()) / 4).backward()
        for kind, value in zip(kinds, given, strict=True):
            close_gradient(value.grad, data[f"grad/{output}.{kind}"])


def test_loss_functions(load):
    data = load("f4_loss_functions")
    logits, labels, three = data["in/logits"], data["in/labels"], data["in/labels3"]
    focal = sigmoid_focal_loss(data["in/cls_logits"], data["in/cls_onehot"])
    close(focal.mean(1).sum() / 4, data["out/sigmoid_focal_loss_nb4"])
    close(dice_loss(logits, labels).sum() / 6, data["out/dice_loss_nm6"])
    close(sigmoid_ce_loss(logits, labels).sum() / 6, data["out/sigmoid_ce_loss_nm6"])
    close(dice_cost(logits, three), data["out/batch_dice_loss"])
    close(mask_cost(logits, three), data["out/batch_sigmoid_ce_loss"])
    one, other = data["in/boxes1_xyxy"][:, None], data["in/boxes2_xyxy"][None]
    close(generalized_box_iou(one, other), data["out/generalized_box_iou"])
    close(box_iou(one, other), data["out/box_iou"])


def test_point_sampling(load):
    data = load("f5_point_sampling")
    close(sample_points(data["in/logits"], data["in/point_coords"]), data["out/point_sample"])
    candidates = torch.cat((data["rng/000_rand"], data["rng/001_rand"]), 1)
    chosen = PointSampler(16).choose(sample_points(data["in/logits"], candidates)[:, 0])
    close(candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), data["out/uncertain_points"])


def test_mask_to_box(load):
    data = load("g1_masks_to_boxes")
    masks = data["in/masks"].float()
    corner = torch.tensor([1.0, 1, 0, 0]).expand(len(masks), 4)
    close(mask_to_box(masks, corner, edge=0), data["out/mask2box_cxcywh_norm"].clamp(0, 1))
    close(mask_to_box(masks, torch.zeros(len(masks), 4), edge=1), data["out/bitmask_cxcywh_norm"])


@torch.no_grad()
def test_resnet(load):
    """A small one with frozen norms whose statistics are not trivial."""
    data = load("h1_resnet_tiny_frozenbn")
    module = ResNet((2, 1, 1, 2), (16, 24, 32, 40), 8).eval()
    report = module.load_state_dict(state(data), strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    for name, value in module(data["in/image"]).items():
        close(value, data[f"out/{name}"])
