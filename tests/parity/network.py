"""The parts of the network against detrex's: attention, encoder, positions, decoder, proposals, backbone.

Each function builds a module of ours from a fixture's constructor arguments, runs it on the fixture's inputs and hands
what comes out to the comparison.
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
from local2global.structures import FrameFeatures, LayerPredictions, Positions, Shapes
from local2global.weights.names import DECODER, PIXEL_DECODER, PREDICTOR

from .fixtures import Comparison, Fixture, UnsupportedError

_PLAIN = (("**", "**"),)
_RELU = {"activation": "relu", "dropout": 0.0}


def attention(fixture: Fixture, compare: Comparison) -> None:
    """Deformable attention; theirs adds the residual inside and may have the batch second."""
    if "in/value" not in fixture and "in/query" not in fixture:
        _initial_attention(fixture, compare)
        return
    fixture.expect(dropout=0.0)
    module = _attention_of(fixture)
    module = fixture.built(module)
    names = fixture.load(module, _PLAIN)
    given = [
        n for n in ("query", "value", "query_pos", "identity", "reference_points") if f"in/{n}" in fixture
    ]
    leaves = {name: fixture.leaf(name) for name in given}
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
    """Gradients of an output's product with the cotangent, where the fixture holds any."""
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
    """What a fresh module holds."""
    fresh = _attention_of(fixture).state_dict()
    for name in fixture.names("out/"):
        compare.output(f"out/{name}", fresh[name])


def sampling(fixture: Fixture, compare: Comparison) -> None:
    """The sum over sampling points alone."""
    leaves = {name: fixture.leaf(name) for name in ("value", "sampling_locations", "attention_weights")}
    value, place, weights = leaves.values()
    out = deformable_sample(value, _shapes(fixture), place[..., 0], place[..., 1], weights)
    compare.output("out/output", out)
    _backward(fixture, out)
    compare.gradients_of(leaves)


@torch.no_grad()
def pixel_encoder(fixture: Fixture, compare: Comparison) -> None:
    """MaskDINO's pixel decoder; where masks are given, their geometry is theirs, position embedding included."""
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
    """The level whose positions detrex lays at each place among the tokens.

    It turns round the levels that it makes, but not their positions: of two or more, tokens have another level's, or,
    where the levels' sizes differ, a part of it.
    """
    levels = list(range(len(module.input_proj)))
    given = len(module.features)
    made = levels[: len(levels) - given] if module.extra_first else levels[given:]
    return [*made[::-1], *levels[len(made) :]] if module.extra_first else [*levels[:given], *made[::-1]]


def _by_stride(fixture: Fixture) -> dict[str, tuple[int, int]]:
    """Channels and stride of every map, finest first."""
    return dict(sorted(fixture.argument("input_shape").items(), key=lambda item: item[1][1]))


def _encoder_of(fixture: Fixture) -> PixelEncoder:
    fixture.expect(norm="GN", transformer_dropout=0.0)
    maps = _by_stride(fixture)
    features = [name for name in maps if name in fixture.argument("transformer_in_features")]
    steps = maps[features[0]][1] / fixture.argument("common_stride")
    if steps != 2 or len(features) < 2:
        raise UnsupportedError(
            "our encoder reads at least two maps and makes one step from the finest to the masks"
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
    """Where detrex's tokens lie under padding masks: they are positioned as if there were none."""
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
    """(B, L, 2) the unpadded part of the first row and column of (B, h, w) masks."""
    parts = [torch.stack(((~m[:, 0]).float().mean(1), (~m[:, :, 0]).float().mean(1)), -1) for m in padding]
    return torch.stack(parts, dim=1)


def grid_positions(fixture: Fixture, compare: Comparison) -> None:
    """DETR's sine embedding of a map: without a mask, with one, and not normalised."""
    fixture.expect(temperature=10000, offset=0.0)
    half, (height, width) = fixture.argument("num_pos_feats"), fixture["in/x"].shape[-2:]
    batch = len(fixture["in/x"])
    whole = torch.tensor([[width, height]] * batch).float()

    def normalised(counts: Tensor) -> Tensor:
        return _as_map(grid_sine_embedding(counts, height, width, 2 * half), (height, width))

    def plain(seen: Tensor) -> Tensor:
        both = (sine_waves(seen.cumsum(axis), half) for axis in (1, 2))
        return torch.cat(tuple(both), dim=-1).permute(0, 3, 1, 2)

    usual, everywhere = fixture.argument("normalize", False), torch.ones(batch, height, width)
    if "out/no_mask" in fixture:
        compare.output("out/no_mask", normalised(whole) if usual else plain(everywhere))
    if "out/with_mask" in fixture:
        seen = ~fixture["in/mask"].bool()
        counts = torch.stack((seen[:, 0].sum(1), seen[:, :, 0].sum(1)), dim=-1).float()
        compare.output("out/with_mask", normalised(counts) if usual else plain(seen))
    if "out/unnormalized" in fixture:
        compare.output("out/unnormalized", plain(everywhere))


def box_positions(fixture: Fixture, compare: Comparison) -> None:
    """The sine embedding of boxes and of points."""
    for name in fixture.names("out/"):
        given, expected = fixture[f"in/{name}"], fixture[f"out/{name}"]
        compare.output(f"out/{name}", box_sine_embedding(given, expected.shape[-1] // given.shape[-1]))


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
    """Embed boxes as theirs does under padding: in [0, 1] of the padded coarsest level.

    Ours embeds them in [0, 1] of the frame, so that padding changes nothing; the two are one where nothing is padded.
    """
    usual, first = module.embed_boxes, torch.cat((ratios[:, 0], ratios[:, 0]), dim=-1)[:, None]
    module.embed_boxes = lambda boxes: usual(boxes * first)  # type: ignore[method-assign]


def decoder(fixture: Fixture, compare: Comparison) -> None:
    """Decoder layers with iterative boxes; theirs have the batch second."""
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
    nothing = torch.zeros(memory.shape[:2], dtype=torch.bool)
    features = _features(
        memory,
        _shapes(fixture),
        nothing if padding is None else padding.bool(),
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
    """The two-stage predictor in evaluation: proposals, first boxes by the rule that is named, decoder, heads."""
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
    placed = Positions(torch.zeros_like(local.embed), start)
    out = module.train().decode(local.embed, placed, features, local.predictions)
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
    nobody: Any = nn.Identity()  # their predictor starts from the encoder's output
    classes, queries = fixture.argument("num_classes"), fixture.argument("num_queries")
    return Segmenter(nobody, nobody, layers, classes, queries, dim, fixture.argument("mask_dim", dim))


def _levels(fixture: Fixture) -> FrameFeatures:
    """The predictor's inputs; the levels come finest first and are read coarsest first, the masks as they come."""
    maps, masks = fixture.series("in/x.")[::-1], fixture["in/mask_features"]
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
    memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    given = [mask.bool() for mask in fixture.series("in/masks.")]
    given = given or [torch.zeros(len(m), *m.shape[-2:], dtype=torch.bool) for m in maps]
    padding = torch.cat([mask.flatten(1) for mask in given], dim=1)
    return _features(memory, shapes, padding, _valid_ratios(given), masks)


def _seen_by_proposals(features: FrameFeatures) -> FrameFeatures:
    """The same as theirs chooses from: padded tokens are zero but compete, where ours bars them.

    The valid ratios are read off the flat padding, others than the levels' own if masks came finest first.
    """
    assert features.padding is not None  # `_levels` gives one always
    levels = features.padding.split([h * w for h, w in features.shapes], dim=1)
    views = [mask.unflatten(1, shape) for mask, shape in zip(levels, features.shapes, strict=True)]
    return replace(
        features,
        memory=features.memory.masked_fill(features.padding[..., None], 0.0),
        padding=torch.zeros_like(features.padding),
        valid_ratios=_valid_ratios(views),
    )


def _first_boxes(fixture: Fixture, masks: Tensor, predicted: Tensor | None) -> Tensor:
    """Boxes of the local masks by the rule that is named; an empty mask has the box that rule gives it."""
    rule = fixture.argument("initialize_box_type")
    if rule == "no":
        assert predicted is not None
        return predicted
    if rule not in EMPTY:
        raise UnsupportedError(f"no such rule for the first boxes: {rule}")
    empty = torch.tensor(EMPTY[rule]).expand(*masks.shape[:2], 4)
    return inverse_sigmoid(mask_to_box(masks, empty, edge=EDGE[rule])).sigmoid()


#: What their rules make of an empty mask, clamped to [0, 1] as their decoder does, and whether the last pixel counts.
EMPTY = {"mask2box": (1.0, 1.0, 0.0, 0.0), "bitmask": (0.0, 0.0, 0.0, 0.0)}
EDGE = {"mask2box": 0, "bitmask": 1}


@torch.no_grad()
def resnet(fixture: Fixture, compare: Comparison) -> None:
    """A ResNet of bottlenecks with frozen norms."""
    fixture.expect(stem_in=3, num_groups=1)
    stages = _stages(fixture.argument("stages"))
    channels = [stage[4] for stage in stages]
    if any(width * 4 != out for _, _, _, width, out in stages):
        raise UnsupportedError("our bottlenecks are a quarter of their output")
    if [stage[1] for stage in stages] != [1, 2, 2, 2]:
        raise UnsupportedError("our stages have strides 1, 2, 2, 2")
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
    """(blocks, stride, in, bottleneck, out) of every stage, written as text or as lists."""
    if isinstance(text, str):
        found = re.findall(r"\(\s*(\d+(?:\s*,\s*\d+){4})\s*\)", text)
        text = [numbers.split(",") for numbers in found]
    stages = [tuple(int(number) for number in stage) for stage in text]
    if not stages or any(len(stage) != 5 for stage in stages):
        raise UnsupportedError("stages: expected (blocks, stride, in, bottleneck, out) of each")
    return stages


def _shapes(fixture: Fixture) -> tuple[tuple[int, int], ...]:
    """Heights and widths of the levels; where each begins in the tokens follows from them."""
    shapes = tuple((int(h), int(w)) for h, w in fixture["in/spatial_shapes"].tolist())
    start = fixture.get("in/level_start_index")
    begins = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    if start is not None and start.tolist() != begins:
        raise UnsupportedError("the levels do not lie one behind the other")
    return shapes


def _features(
    memory: Tensor, shapes: Shapes, padding: Tensor, ratios: Tensor, masks: Tensor | None = None
) -> FrameFeatures:
    masks = memory.new_zeros(len(memory), 1, 1, 1) if masks is None else masks
    extent = memory.new_tensor([[masks.shape[-1], masks.shape[-2]]]).expand(len(memory), -1)
    return FrameFeatures(memory, tuple(shapes), padding, masks, extent, ratios)


def _as_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(-1, shape)
