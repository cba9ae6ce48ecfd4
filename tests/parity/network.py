"""Checks of the network: attention, encoder, positions, decoder, proposals, backbone.

Each function builds our module from a fixture's constructor arguments, runs it on the inputs and compares the results.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from local2global.boxes import mask_to_box
from local2global.modeling.backbone import ResNet
from local2global.modeling.decoder import Decoder
from local2global.modeling.deformable import DeformableAttention
from local2global.modeling.encoder import Geometry, PixelEncoder, grid_sine_embedding, pixel_centres
from local2global.modeling.layers import inverse_sigmoid, mask_logits, sine_waves
from local2global.modeling.ops import deformable_sample
from local2global.modeling.positions import box_sine_embedding
from local2global.modeling.segmenter import Segmenter, proposal_anchors
from local2global.structures import FrameFeatures, LayerPredictions, Positions, Queries, Shapes
from local2global.weights.names import DECODER, PIXEL_DECODER, PREDICTOR

from .fixtures import Comparison, Fixture, UnsupportedError

_PLAIN = (("**", "**"),)
_RELU = {"activation": "relu", "dropout": 0.0}


def attention(fixture: Fixture, compare: Comparison) -> None:
    """Deformable attention; detrex's module adds the residual and may have the batch second."""
    if "in/value" not in fixture and "in/query" not in fixture:
        _initial_attention(fixture, compare)
        return
    fixture.expect(dropout=0.0)
    module = _attention_of(fixture)
    module = fixture.built(module)
    names = fixture.load(module, _PLAIN)
    inputs = ("query", "value", "query_pos", "identity", "reference_points")
    leaves = {name: fixture.leaf(name) for name in inputs if f"in/{name}" in fixture}
    query = leaves["query"]
    value, identity = leaves.get("value", query), leaves.get("identity", query)
    positioned = query + leaves["query_pos"] if "query_pos" in leaves else query

    def batch_first(x: Tensor) -> Tensor:
        return x if fixture.argument("batch_first", False) else x.transpose(0, 1)

    padding = fixture.get("in/key_padding_mask")
    out = module(
        batch_first(positioned),
        leaves["reference_points"],
        batch_first(value),
        _shapes(fixture),
        None if padding is None else padding.bool(),
    )
    out = batch_first(out) + identity
    compare.output("out/output", out)
    _backward(fixture, out)
    compare.gradients_of(leaves, module, names)


def _backward(fixture: Fixture, out: Tensor) -> None:
    """Run backward from the product of an output and the cotangent, if the fixture stores gradients."""
    if fixture.names("grad/"):
        (out * fixture["in/cotangent"]).sum().backward()


def _attention_of(fixture: Fixture) -> DeformableAttention:
    return DeformableAttention(
        fixture.argument("embed_dim", 256),
        fixture.argument("num_heads", 8),
        fixture.argument("num_levels", 4),
        fixture.argument("num_points", 4),
    )


def _initial_attention(fixture: Fixture, compare: Comparison) -> None:
    """Compare the initial parameters of a module."""
    fresh = _attention_of(fixture).state_dict()
    for name in fixture.names("out/"):
        compare.output(f"out/{name}", fresh[name])


def sampling(fixture: Fixture, compare: Comparison) -> None:
    """The sampling sum of deformable attention, without projections."""
    leaves = {name: fixture.leaf(name) for name in ("value", "sampling_locations", "attention_weights")}
    value, place, weights = leaves.values()
    out = deformable_sample(value, _shapes(fixture), place[..., 0], place[..., 1], weights)
    compare.output("out/output", out)
    _backward(fixture, out)
    compare.gradients_of(leaves)


@torch.no_grad()
def pixel_encoder(fixture: Fixture, compare: Comparison) -> None:
    """MaskDINO's pixel decoder; with padding masks, positions and references follow detrex's rules."""
    module = _encoder_of(fixture)
    module = fixture.built(module)
    fixture.load(module, PIXEL_DECODER)
    maps = {name: fixture[f"in/{name}"] for name in _by_stride(fixture)}
    sources = module.project(maps)
    shapes = tuple((source.shape[-2], source.shape[-1]) for source in sources)
    padding = [mask.bool() for mask in fixture.series("in/masks.")]
    order = _order_of_positions(module)
    swapped = order != sorted(order)
    if padding or swapped:
        padding = padding or [torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool) for x in sources]
        geometry = _their_geometry(shapes, padding, maps[module.lateral], sources[0].shape[1])
    else:
        valid = torch.ones(len(sources[0]), 2)
        mask_shape = (maps[module.lateral].shape[-2], maps[module.lateral].shape[-1])
        geometry = Geometry.of(shapes, valid, mask_shape, sources[0].shape[1])
    positions = geometry.pos.split([h * w for h, w in shapes], dim=1)
    for i, level in enumerate(order):
        if f"mid/transformer_srcs.{i}" in fixture:
            compare.output(f"mid/transformer_srcs.{i}", sources[i])
        if f"mid/transformer_pos.{i}" in fixture:
            compare.output(f"mid/transformer_pos.{i}", _as_map(positions[level], shapes[level]))
    if swapped:
        placed = [positions[level] + module.level_embed[i] for i, level in enumerate(order)]
        geometry = replace(geometry, pos=torch.cat(placed, dim=1))
        module.level_embed.zero_()
    features = module.encode(maps[module.lateral], sources, geometry)
    compare.output("out/mask_features", features.mask_features)
    tokens = features.memory.split([h * w for h, w in features.shapes], dim=1)
    for i, level in enumerate(module.coarsest_first):
        name = f"out/multi_scale_features.{level}"
        if name in fixture:  # as many as were asked for
            compare.output(name, _as_map(tokens[i], features.shapes[i]))
        if level == 0:
            compare.output("out/transformer_encoder_features", _as_map(tokens[i], features.shapes[i]))


def _order_of_positions(module: PixelEncoder) -> list[int]:
    """The level whose position embedding detrex uses for each level of tokens.

    detrex reverses its extra levels but not their positions: with two or more extra levels, tokens receive the
    positions of another level, or a part of them where sizes differ.
    """
    levels = list(range(len(module.input_proj)))
    num_maps = len(module.features)
    if module.extra_first:
        num_extra = len(levels) - num_maps
        return [*levels[:num_extra][::-1], *levels[num_extra:]]
    return [*levels[:num_maps], *levels[num_maps:][::-1]]


def _by_stride(fixture: Fixture) -> dict[str, tuple[int, int]]:
    """(channels, stride) of every feature map, finest first."""
    return dict(sorted(fixture.argument("input_shape").items(), key=lambda item: item[1][1]))


def _encoder_of(fixture: Fixture) -> PixelEncoder:
    fixture.expect(norm="GN", transformer_dropout=0.0)
    maps = _by_stride(fixture)
    features = [name for name in maps if name in fixture.argument("transformer_in_features")]
    steps = maps[features[0]][1] / fixture.argument("common_stride")
    if steps != 2 or len(features) < 2:
        raise UnsupportedError(
            "our encoder needs at least two maps, and a mask stride half of the finest map's"
        )
    dim, order = fixture.argument("conv_dim"), fixture.argument("feature_order")
    return PixelEncoder(
        {name: channels for name, (channels, _) in maps.items()},
        dim,
        fixture.argument("transformer_nheads"),
        fixture.argument("transformer_enc_layers"),
        fixture.argument("transformer_dim_feedforward"),
        fixture.argument("total_num_feature_levels"),
        features=features if order == "low2high" else features[::-1],
        mask_dim=fixture.argument("mask_dim", dim),
    )


def _their_geometry(shapes: Shapes, padding: list[Tensor], lateral: Tensor, dim: int) -> Geometry:
    """Geometry of tokens under padding masks; detrex embeds positions as if nothing were padded."""
    batch = len(lateral)
    ratios = _valid_ratios(padding)
    pos = [grid_sine_embedding(torch.tensor([[w, h]] * batch).float(), h, w, dim) for h, w in shapes]
    centres = [pixel_centres(*shape, lateral.device) / ratios[:, None, i] for i, shape in enumerate(shapes)]
    return Geometry(
        tuple(shapes),
        torch.cat(pos, dim=1),
        torch.cat(centres, dim=1)[:, :, None] * ratios[:, None],
        torch.cat([mask.flatten(1) for mask in padding], dim=1),
        ratios,
        torch.tensor([[lateral.shape[-1], lateral.shape[-2]]] * batch).float(),
    )


def _valid_ratios(padding: list[Tensor]) -> Tensor:
    """(B, L, 2) unpadded fraction of the first row and column of (B, h, w) masks."""
    parts = [torch.stack(((~m[:, 0]).float().mean(1), (~m[:, :, 0]).float().mean(1)), -1) for m in padding]
    return torch.stack(parts, dim=1)


def grid_positions(fixture: Fixture, compare: Comparison) -> None:
    """DETR's sine embedding of a map: without mask, with mask, and not normalised."""
    fixture.expect(temperature=10000, offset=0.0)
    half, (height, width) = fixture.argument("num_pos_feats"), fixture["in/x"].shape[-2:]
    batch = len(fixture["in/x"])
    whole = torch.tensor([[width, height]] * batch).float()

    def normalised(counts: Tensor) -> Tensor:
        return _as_map(grid_sine_embedding(counts, height, width, 2 * half), (height, width))

    def plain(valid: Tensor) -> Tensor:
        embeddings = (sine_waves(valid.cumsum(axis), half) for axis in (1, 2))
        return torch.cat(tuple(embeddings), dim=-1).permute(0, 3, 1, 2)

    normalize, everywhere = fixture.argument("normalize", False), torch.ones(batch, height, width)
    if "out/no_mask" in fixture:
        compare.output("out/no_mask", normalised(whole) if normalize else plain(everywhere))
    if "out/with_mask" in fixture:
        valid = ~fixture["in/mask"].bool()
        counts = torch.stack((valid[:, 0].sum(1), valid[:, :, 0].sum(1)), dim=-1).float()
        compare.output("out/with_mask", normalised(counts) if normalize else plain(valid))
    if "out/unnormalized" in fixture:
        compare.output("out/unnormalized", plain(everywhere))


def box_positions(fixture: Fixture, compare: Comparison) -> None:
    """The sine embedding of boxes and of points."""
    for name in fixture.names("out/"):
        boxes, expected = fixture[f"in/{name}"], fixture[f"out/{name}"]
        compare.output(f"out/{name}", box_sine_embedding(boxes, expected.shape[-1] // boxes.shape[-1]))


def proposals(fixture: Fixture, compare: Comparison) -> None:
    """Two-stage proposals."""
    shapes, memory = _shapes(fixture), fixture["in/memory"]
    padding = fixture["in/memory_padding_mask"].bool()
    levels = padding.split([h * w for h, w in shapes], dim=1)
    ratios = _valid_ratios([m.unflatten(1, shape) for m, shape in zip(levels, shapes, strict=True)])
    ours, anchors = proposal_anchors(_features(memory, shapes, padding, ratios))
    compare.output("out/output_memory", ours)
    compare.output("out/output_proposals", anchors)


def logit(fixture: Fixture, compare: Comparison) -> None:
    """The clamped inverse of the sigmoid."""
    compare.output("out/y", inverse_sigmoid(fixture["in/x"], fixture.argument("eps", 1e-5)))


def _embed_padded(module: Decoder, ratios: Tensor) -> None:
    """Embed boxes in [0, 1] of the padded coarsest level, as detrex does.

    Our decoder embeds them in [0, 1] of the frame, so that padding has no effect. Without padding both are equal.
    """
    embed_boxes, first = module.embed_boxes, torch.cat((ratios[:, 0], ratios[:, 0]), dim=-1)[:, None]
    module.embed_boxes = lambda boxes: embed_boxes(boxes * first)  # type: ignore[method-assign]


def decoder(fixture: Fixture, compare: Comparison) -> None:
    """Decoder layers with box refinement; detrex has the batch second."""
    fixture.expect(query_dim=4, **_RELU)
    module = Decoder(
        fixture.argument("d_model"),
        fixture.argument("n_heads"),
        fixture.argument("num_layers"),
        fixture.argument("d_ffn"),
        fixture.argument("n_levels"),
        fixture.argument("n_points"),
    )
    module = fixture.built(module)
    names = fixture.load(module, DECODER)
    leaves = {name: fixture.leaf(name) for name in ("tgt", "memory", "refpoints_unsigmoid")}
    tgt, memory, boxes = (leaf.transpose(0, 1) for leaf in leaves.values())
    padding, barred = fixture.get("in/memory_key_padding_mask"), fixture.get("in/tgt_mask")
    no_padding = torch.zeros(memory.shape[:2], dtype=torch.bool)
    features = _features(
        memory,
        _shapes(fixture),
        no_padding if padding is None else padding.bool(),
        fixture["in/valid_ratios"],
    )
    _embed_padded(module, features.valid_ratios)
    out = module(tgt, boxes.sigmoid(), features, None if barred is None else barred.bool())
    last = out.references[-1] if len(out.references) == 1 else out.references[-1].detach()
    references = [*out.references, module.refine(out.raw[-1], last)]
    for i, hidden in enumerate(out.hidden):
        compare.output(f"out/hs.{i}", hidden)
    for i, reference in enumerate(references):
        compare.output(f"out/references.{i}", reference)
    total = torch.stack([reference.sum() for reference in references]).sum()
    for hidden, cotangent in zip(out.hidden, fixture.series("in/cotangent."), strict=False):
        total = total + (hidden * cotangent).sum()
    if fixture.names("grad/"):
        total.backward()
    compare.gradients_of(leaves, module, names)


@torch.no_grad()
def predictor(fixture: Fixture, compare: Comparison) -> None:
    """The two-stage predictor in evaluation: proposals, initial boxes, decoder, heads."""
    module = _segmenter_of(fixture)
    module = fixture.built(module)
    fixture.load(module, PREDICTOR)
    features = _levels(fixture)
    _embed_padded(module.decoder, features.valid_ratios)
    local = module.propose(_seen_by_proposals(features))
    kinds = ("pred_logits", "pred_boxes", "pred_masks")

    def masks_of(layer: LayerPredictions) -> Tensor:
        return mask_logits(layer.mask_embed, features.mask_features, features.extent)

    def heads(prefix: str, layer: LayerPredictions, boxes: Tensor | None) -> None:
        for kind, value in zip(kinds, (layer.logits, boxes, masks_of(layer)), strict=True):
            if f"{prefix}{kind}" in fixture and value is not None:
                compare.output(f"{prefix}{kind}", value)

    heads("out/interm_outputs.", local.predictions, local.predictions.boxes)
    start = _first_boxes(fixture, masks_of(local.predictions), local.predictions.boxes)
    positions = Positions(torch.zeros_like(local.embed), start)
    out = module.train().decode(Queries(local.embed, start), positions, features, local.predictions)
    *earlier, last = out.layers
    earlier = [replace(earlier[0], boxes=start), *earlier[1:]]
    for i, layer in enumerate(earlier if fixture.argument("initial_pred", True) else earlier[1:]):
        heads(f"out/aux_outputs.{i}.", layer, layer.boxes)
    heads("out/", last, out.boxes)


def _segmenter_of(fixture: Fixture) -> Segmenter:
    fixture.expect(
        mask_classification=True,
        enforce_input_project=False,
        two_stage=True,
        learn_tgt=False,
        query_dim=4,
        semantic_ce_loss=False,
        **_RELU,
    )
    dim = fixture.argument("hidden_dim")
    fixture.expect(in_channels=dim)
    layers = Decoder(
        dim,
        fixture.argument("nhead", 8),
        fixture.argument("dec_layers"),
        fixture.argument("dim_feedforward"),
        fixture.argument("total_num_feature_levels", 4),
        fixture.argument("dec_n_points", 4),
    )
    unused: Any = nn.Identity()  # the predictor starts from the encoder's output
    classes, queries = fixture.argument("num_classes"), fixture.argument("num_queries")
    return Segmenter(unused, unused, layers, classes, queries, dim, fixture.argument("mask_dim", dim))


def _levels(fixture: Fixture) -> FrameFeatures:
    """The predictor's inputs; detrex reverses the levels to coarsest first, but not their padding masks."""
    maps, masks = fixture.series("in/x.")[::-1], fixture["in/mask_features"]
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    levels = [mask.bool() for mask in fixture.series("in/masks.")]
    levels = levels or [torch.zeros(len(m), *m.shape[-2:], dtype=torch.bool) for m in maps]
    padding = torch.cat([mask.flatten(1) for mask in levels], dim=1)
    return _features(memory, shapes, padding, _valid_ratios(levels), masks)


def _seen_by_proposals(features: FrameFeatures) -> FrameFeatures:
    """Features as detrex's two-stage selection reads them: padded tokens are zero but can be selected.

    detrex computes the valid ratios from the flattened padding, whose levels are in another order.
    """
    assert features.padding is not None  # set by `_levels`
    levels = features.padding.split([h * w for h, w in features.shapes], dim=1)
    views = [mask.unflatten(1, shape) for mask, shape in zip(levels, features.shapes, strict=True)]
    return replace(
        features,
        memory=features.memory.masked_fill(features.padding[..., None], 0.0),
        padding=torch.zeros_like(features.padding),
        valid_ratios=_valid_ratios(views),
    )


def _first_boxes(fixture: Fixture, masks: Tensor, predicted: Tensor | None) -> Tensor:
    """Boxes of the local masks by the rule in `initialize_box_type`, including its box for an empty mask."""
    rule = fixture.argument("initialize_box_type")
    if rule == "no":
        assert predicted is not None
        return predicted
    if rule not in EMPTY:
        raise UnsupportedError(f"unknown initialize_box_type: {rule}")
    empty = torch.tensor(EMPTY[rule]).expand(*masks.shape[:2], 4)
    return inverse_sigmoid(mask_to_box(masks, empty, edge=EDGE[rule])).sigmoid()


#: Each rule's box of an empty mask after the decoder's clamp to [0, 1], and whether the last pixel counts.
EMPTY = {"mask2box": (1.0, 1.0, 0.0, 0.0), "bitmask": (0.0, 0.0, 0.0, 0.0)}
EDGE = {"mask2box": 0, "bitmask": 1}


@torch.no_grad()
def resnet(fixture: Fixture, compare: Comparison) -> None:
    """A ResNet of bottlenecks with frozen norms."""
    fixture.expect(stem_in=3, num_groups=1)
    stages = _stages(fixture.argument("stages"))
    channels = [stage[4] for stage in stages]
    if any(width * 4 != out for _, _, _, width, out in stages):
        raise UnsupportedError("our bottleneck width is a quarter of the output width")
    if [stage[1] for stage in stages] != [1, 2, 2, 2]:
        raise UnsupportedError("our strides are 1, 2, 2, 2")
    module = ResNet(
        [stage[0] for stage in stages],
        channels,
        fixture.argument("stem_out"),
        stride_in_1x1=fixture.argument("stride_in_1x1", False),
    )
    module = fixture.built(module).eval()
    fixture.load(module, _PLAIN)
    maps = module(fixture["in/image"])
    for name in fixture.names("out/"):
        if name not in maps:
            raise UnsupportedError(f"our ResNet has no {name}")
        compare.output(f"out/{name}", maps[name])


def _stages(text: Any) -> list[tuple[int, ...]]:
    """(blocks, stride, in, bottleneck, out) of every stage, from text or lists."""
    if isinstance(text, str):
        groups = re.findall(r"\(\s*(\d+(?:\s*,\s*\d+){4})\s*\)", text)
        text = [numbers.split(",") for numbers in groups]
    stages = [tuple(int(number) for number in stage) for stage in text]
    if not stages or any(len(stage) != 5 for stage in stages):
        raise UnsupportedError("stages: expected (blocks, stride, in, bottleneck, out) of each")
    return stages


def _shapes(fixture: Fixture) -> tuple[tuple[int, int], ...]:
    """(height, width) of every level; `level_start_index` must follow from them."""
    shapes = tuple((int(h), int(w)) for h, w in fixture["in/spatial_shapes"].tolist())
    start = fixture.get("in/level_start_index")
    expected = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    if start is not None and start.tolist() != expected:
        raise UnsupportedError("level_start_index does not match spatial_shapes")
    return shapes


def _features(
    memory: Tensor, shapes: Shapes, padding: Tensor, ratios: Tensor, masks: Tensor | None = None
) -> FrameFeatures:
    masks = memory.new_zeros(len(memory), 1, 1, 1) if masks is None else masks
    extent = memory.new_tensor([[masks.shape[-1], masks.shape[-2]]]).expand(len(memory), -1)
    return FrameFeatures(memory, tuple(shapes), padding, masks, extent, ratios)


def _as_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(-1, shape)
