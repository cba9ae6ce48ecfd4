"""Record the fixtures in `tests/parity/recorded/` by running the real detrex and detectron2.

    make seam DETREX=path DETECTRON2=path          # once: creates the environment .venv-seam
    DETREX=path DETECTRON2=path .venv-seam/bin/python tests/parity/record.py tests/parity/recorded

Weights are drawn, rounded to multiples of 1/32 and stored as int8, so that each file stays below 100 kB. Two things in
detrex are replaced while recording, both here in the open: `Tensor.cuda` returns the tensor itself, and the sine
embedding of boxes, which detrex fixes at 128 features a coordinate, takes its width from the model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import detrex_launch

STEP = 32  # weights are multiples of 1 / STEP
SHAPES = [(8, 12), (4, 6), (2, 3)]  # feature levels, finest first
KINDS = ("pred_logits", "pred_boxes", "pred_masks")
Arrays = dict[str, Tensor]
Recording = tuple[dict[str, Any], str, Arrays]


def quantise(module: nn.Module, scale: float = 0.15) -> Arrays:
    """Add noise to every float tensor of a module and round to multiples of 1/STEP.

    Returns:
        The weights as int8 `stateq/<name>`; a shared tensor once, by its first name.
    """
    stored: Arrays = {}
    seen = set()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.data_ptr() in seen:
                continue
            seen.add(value.data_ptr())
            noise = torch.randn_like(value) * scale
            if name.endswith("running_var"):
                noise = noise.abs()
            steps = ((value + noise) * STEP).round().clamp(-127, 127)
            value.copy_(steps / STEP)
            stored[f"stateq/{name}"] = steps.to(torch.int8)
    return stored


@contextmanager
def recorded_draws(arrays: Arrays) -> Iterator[None]:
    """Store every tensor that `torch.rand` returns inside the block as `rng/NNN_rand`."""
    draw = torch.rand

    def rand(*size: Any, **options: Any) -> Tensor:
        value = draw(*size, **options)
        arrays[f"rng/{len([n for n in arrays if n.startswith('rng/')]):03d}_rand"] = value.clone()
        return value

    with mock.patch.object(torch, "rand", rand):
        yield


def sine_embedding(features: int) -> Callable[[Tensor], Tensor]:
    """Return the sine embedding of (Q, B, 2 or 4) boxes with `features` features per coordinate instead of 128."""
    frequencies = 10000 ** (2 * (torch.arange(features) // 2) / features)

    def embed(boxes: Tensor) -> Tensor:
        angles = (boxes * (2 * math.pi))[..., None] / frequencies
        waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)
        return waves[..., [1, 0, 2, 3][: boxes.shape[-1]], :].flatten(-2)

    return embed


@contextmanager
def narrow_model(dim: int) -> Iterator[None]:
    """Let detrex's decoder run on a CPU with a model width other than 256."""
    from projects.maskdino.modeling.transformer_decoder import dino_decoder

    boxes = torch.rand(3, 2, 4)
    assert torch.equal(sine_embedding(128)(boxes), dino_decoder.gen_sineembed_for_position(boxes))
    with (
        mock.patch.object(dino_decoder, "gen_sineembed_for_position", sine_embedding(dim // 2)),
        mock.patch.object(Tensor, "cuda", lambda x: x),
    ):
        yield


def spatial(shapes: list[tuple[int, int]]) -> Arrays:
    """Level sizes and start indices, as deformable attention receives them."""
    sizes = torch.tensor(shapes)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return {"in/spatial_shapes": sizes, "in/level_start_index": starts}


def padding_of(shapes: list[tuple[int, int]]) -> Tensor:
    """(2, S) padding mask: the second image is padded in its last third of columns."""
    rows = []
    for height, width in shapes:
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[1, :, -(width // 3) :] = True
        rows.append(mask.flatten(1))
    return torch.cat(rows, dim=1)


def attention() -> Recording:
    """`MultiScaleDeformableAttention` with 4-d references and padding; gradients of inputs and weights."""
    from detrex.layers import MultiScaleDeformableAttention

    arguments = dict(embed_dim=16, num_heads=4, num_levels=3, num_points=4, dropout=0.0, batch_first=True)
    module = MultiScaleDeformableAttention(**arguments)
    arrays = quantise(module) | spatial(SHAPES)
    tokens = sum(h * w for h, w in SHAPES)
    leaves = {"query": torch.randn(2, 5, 16), "value": torch.randn(2, tokens, 16)}
    leaves |= {"query_pos": torch.randn(2, 5, 16), "reference_points": torch.rand(2, 5, 3, 4)}
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    arrays["in/key_padding_mask"] = padding_of(SHAPES)
    arrays["in/cotangent"] = torch.randn(2, 5, 16)
    out = module(
        **leaves,
        key_padding_mask=arrays["in/key_padding_mask"],
        spatial_shapes=arrays["in/spatial_shapes"],
        level_start_index=arrays["in/level_start_index"],
    )
    (out * arrays["in/cotangent"]).sum().backward()
    arrays |= {"out/output": out} | {f"in/{name}": value for name, value in leaves.items()}
    arrays |= {f"grad/{name}": value.grad for name, value in leaves.items()}
    arrays |= {f"grad/state.{name}": value.grad for name, value in module.named_parameters()}
    return {"class": "detrex.layers.MultiScaleDeformableAttention", **arguments}, "residual included", arrays


def sampling() -> Recording:
    """`multi_scale_deformable_attn_pytorch`, some locations outside the image; gradients of all inputs."""
    from detrex.layers import multi_scale_deformable_attn_pytorch

    arrays = spatial(SHAPES)
    tokens = sum(h * w for h, w in SHAPES)
    leaves = {
        "value": torch.randn(2, tokens, 4, 8),
        "sampling_locations": torch.rand(2, 5, 4, 3, 4, 2) * 1.4 - 0.2,
        "attention_weights": torch.randn(2, 5, 4, 12).softmax(-1).view(2, 5, 4, 3, 4),
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    arrays["in/cotangent"] = torch.randn(2, 5, 32)
    value, places, weights = leaves.values()
    out = multi_scale_deformable_attn_pytorch(value, arrays["in/spatial_shapes"], places, weights)
    (out * arrays["in/cotangent"]).sum().backward()
    arrays |= {"out/output": out} | {f"in/{name}": value for name, value in leaves.items()}
    arrays |= {f"grad/{name}": value.grad for name, value in leaves.items()}
    return {"function": "detrex.layers.multi_scale_deformable_attn_pytorch"}, "", arrays


def pixel_encoder() -> Recording:
    """`MaskDINOEncoder` with four levels, as the paper's segmenter uses it."""
    from detectron2.layers import ShapeSpec
    from projects.maskdino.modeling.pixel_decoder.maskdino_encoder import MaskDINOEncoder

    channels = {"res2": (8, 4), "res3": (12, 8), "res4": (16, 16), "res5": (20, 32)}
    arguments = dict(
        transformer_dropout=0.0,
        transformer_nheads=4,
        transformer_dim_feedforward=32,
        transformer_enc_layers=1,
        conv_dim=32,
        mask_dim=32,
        norm="GN",
        transformer_in_features=["res3", "res4", "res5"],
        common_stride=4,
        num_feature_levels=3,
        total_num_feature_levels=4,
        feature_order="low2high",
    )
    shape = {name: ShapeSpec(channels=c, stride=s) for name, (c, s) in channels.items()}
    module = MaskDINOEncoder(shape, **arguments).eval()
    arrays = quantise(module)
    maps = {name: torch.randn(1, c, 32 // s, 128 // s) for name, (c, s) in channels.items()}
    mask_features, finest, levels = module.forward_features(maps, None)
    arrays |= {f"in/{name}": value for name, value in maps.items()}
    arrays |= {"out/mask_features": mask_features, "out/transformer_encoder_features": finest}
    arrays |= {f"out/multi_scale_features.{i}": level for i, level in enumerate(levels)}
    sizes = {name: list(value) for name, value in channels.items()}
    return {"class": "MaskDINOEncoder", **arguments, "input_shape": sizes}, "masks=None", arrays


def box_positions() -> Recording:
    """`gen_sineembed_for_position` as it stands, 128 features a coordinate."""
    from projects.maskdino.utils.utils import gen_sineembed_for_position

    inputs = {"boxes": torch.rand(4, 2, 4), "points": torch.rand(4, 2, 2)}
    arrays = {f"in/{name}": value for name, value in inputs.items()}
    arrays |= {f"out/{name}": gen_sineembed_for_position(value) for name, value in inputs.items()}
    return {"function": "projects.maskdino.utils.utils.gen_sineembed_for_position"}, "(Q, B, 2 or 4)", arrays


def proposals() -> Recording:
    """`gen_encoder_output_proposals` under padding."""
    from projects.maskdino.utils.utils import gen_encoder_output_proposals

    arrays = spatial(SHAPES)
    arrays["in/memory_padding_mask"] = padding_of(SHAPES)
    arrays["in/memory"] = torch.randn(2, sum(h * w for h, w in SHAPES), 8)
    memory, anchors = gen_encoder_output_proposals(
        arrays["in/memory"], arrays["in/memory_padding_mask"], arrays["in/spatial_shapes"]
    )
    arrays |= {"out/output_memory": memory, "out/output_proposals": anchors}
    return {"function": "gen_encoder_output_proposals"}, "", arrays


def decoder() -> Recording:
    """`TransformerDecoder` with barred self-attention and padding; gradients of all inputs and of the first layer."""
    from projects.maskdino.modeling.transformer_decoder.dino_decoder import (
        DeformableTransformerDecoderLayer,
        TransformerDecoder,
    )
    from projects.maskdino.utils.utils import MLP

    sizes = dict(d_model=16, d_ffn=24, n_levels=3, n_heads=4, n_points=4)
    layer = DeformableTransformerDecoderLayer(**sizes, dropout=0.0, activation="relu")
    module = TransformerDecoder(
        layer, 2, nn.LayerNorm(16), return_intermediate=True, d_model=16, query_dim=4, num_feature_levels=3
    )
    box_head = MLP(16, 16, 4, 3)
    module.bbox_embed = nn.ModuleList([box_head, box_head])
    arrays = quantise(module) | spatial(SHAPES)
    tokens = sum(h * w for h, w in SHAPES)
    leaves = {"tgt": torch.randn(6, 2, 16), "memory": torch.randn(tokens, 2, 16)}
    leaves = {
        k: v.requires_grad_() for k, v in (leaves | {"refpoints_unsigmoid": torch.randn(6, 2, 4)}).items()
    }
    inputs = {"memory_key_padding_mask": padding_of(SHAPES), "tgt_mask": torch.rand(6, 6) < 0.3}
    inputs["tgt_mask"].fill_diagonal_(False)
    inputs["valid_ratios"] = torch.tensor([[[1.0, 1.0]] * 3, [[2 / 3, 1.0]] * 3])
    with narrow_model(16):
        hidden, references = module(
            **leaves,
            **inputs,
            spatial_shapes=arrays["in/spatial_shapes"],
            level_start_index=arrays["in/level_start_index"],
        )
    cotangents = [torch.randn(2, 6, 16) for _ in hidden]
    loss = sum((h * c).sum() for h, c in zip(hidden, cotangents, strict=True))
    (loss + sum(r.sum() for r in references)).backward()
    arrays |= {f"in/{name}": value for name, value in (leaves | inputs).items()}
    arrays |= {f"in/cotangent.{i}": value for i, value in enumerate(cotangents)}
    arrays |= {f"out/hs.{i}": value for i, value in enumerate(hidden)}
    arrays |= {f"out/references.{i}": value for i, value in enumerate(references)}
    arrays |= {f"grad/{name}": value.grad for name, value in leaves.items()}
    first = {n: p for n, p in module.named_parameters() if n.startswith("layers.0.")}
    arrays |= {f"grad/state.{name}": value.grad for name, value in first.items()}
    about = {"class": "TransformerDecoder", **sizes, "num_layers": 2, "query_dim": 4}
    return about, "batch second; sine embedding of 8 features a coordinate", arrays


def predictor() -> Recording:
    """`MaskDINODecoder` in evaluation: two-stage selection, Mask2Box, two decoder layers, all heads."""
    from projects.maskdino.modeling.transformer_decoder.maskdino_decoder import MaskDINODecoder

    arguments = dict(
        in_channels=32,
        mask_classification=True,
        num_classes=5,
        hidden_dim=32,
        num_queries=6,
        nheads=4,
        nhead=4,
        dim_feedforward=48,
        dec_layers=2,
        mask_dim=32,
        enforce_input_project=False,
        two_stage=True,
        dn="seg",
        noise_scale=0.4,
        dn_num=8,
        initialize_box_type="mask2box",
        initial_pred=True,
        learn_tgt=False,
        total_num_feature_levels=3,
    )
    module = MaskDINODecoder(**arguments).eval()
    arrays = quantise(module)
    maps, fine = [torch.randn(1, 32, *size) for size in SHAPES], torch.randn(1, 32, 8, 12)
    with narrow_model(32):
        out, _ = module(maps, fine, None)
    arrays |= {f"in/x.{i}": value for i, value in enumerate(maps)} | {"in/mask_features": fine}
    sets = {"": out, "interm_outputs.": out["interm_outputs"]}
    sets |= {f"aux_outputs.{i}.": value for i, value in enumerate(out["aux_outputs"])}
    arrays |= {f"out/{prefix}{kind}": value[kind] for prefix, value in sets.items() for kind in KINDS}
    about = {"class": "MaskDINODecoder", **arguments, "activation": "relu", "dropout": 0.0}
    return about, "levels finest first; sine embedding of 16 features a coordinate", arrays


def predictions(sets: int) -> Iterator[Arrays]:
    """Class logits, boxes and mask logits of 2 images and 6 queries."""
    for _ in range(sets):
        boxes = torch.rand(2, 6, 4) * 0.5 + 0.2
        yield dict(zip(KINDS, (torch.randn(2, 6, 5), boxes, torch.randn(2, 6, 8, 12) * 2), strict=True))


def targets() -> list[Arrays]:
    """Three instances in the first image, one in the second; masks are rectangles."""
    instances = []
    for count in (3, 1):
        masks = torch.zeros(count, 32, 48, dtype=torch.bool)
        for i in range(count):
            masks[i, 4 + 5 * i : 16 + 5 * i, 6 + 9 * i : 22 + 9 * i] = True
        labels = torch.randint(0, 5, (count,))
        instances.append({"labels": labels, "boxes": torch.rand(count, 4) * 0.4 + 0.3, "masks": masks})
    return instances


MATCHER = dict(
    cost_class=4.0,
    cost_mask=5.0,
    cost_dice=5.0,
    num_points=32,
    cost_box=5.0,
    cost_giou=2.0,
    panoptic_on=False,
)


def matcher() -> Recording:
    """`HungarianMatcher`: the cost matrices and the assignment."""
    from projects.maskdino.modeling import matcher as upstream

    arrays: Arrays = {}
    outputs, truth, costs = next(predictions(1)), targets(), []
    solve = upstream.linear_sum_assignment

    def assignment(cost: Any) -> Any:
        costs.append(torch.as_tensor(cost).clone())
        return solve(cost)

    with recorded_draws(arrays), mock.patch.object(upstream, "linear_sum_assignment", assignment):
        indices = upstream.HungarianMatcher(**MATCHER)(outputs, truth)
    arrays |= {f"in/outputs.{kind}": value for kind, value in outputs.items()}
    arrays |= {f"in/targets.{i}.{k}": value for i, each in enumerate(truth) for k, value in each.items()}
    for i, (rows, columns) in enumerate(indices):
        arrays |= {f"out/cost.{i}": costs[i], f"out/indices.{i}.src": rows, f"out/indices.{i}.tgt": columns}
    return {"class": "HungarianMatcher", **MATCHER}, "one set of random points per image", arrays


def criterion() -> Recording:
    """`SetCriterion` over the final, one auxiliary and the encoder's predictions; gradients of all predictions."""
    from projects.maskdino.modeling.criterion import SetCriterion
    from projects.maskdino.modeling.matcher import HungarianMatcher

    arguments = dict(
        num_classes=5,
        weight_dict={},
        eos_coef=0.1,
        losses=["labels", "masks", "boxes"],
        num_points=32,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        dn="no",
        dn_losses=[],
        panoptic_on=False,
        semantic_ce_loss=False,
    )
    names = ("", "aux_outputs.0.", "interm_outputs.")
    sets = {
        name: {k: v.requires_grad_() for k, v in s.items()}
        for name, s in zip(names, predictions(3), strict=True)
    }
    outputs = {**sets[""], "aux_outputs": [sets["aux_outputs.0."]], "interm_outputs": sets["interm_outputs."]}
    arrays: Arrays = {}
    truth = targets()
    with recorded_draws(arrays):
        losses = SetCriterion(matcher=HungarianMatcher(**MATCHER), **arguments)(outputs, truth)
    sum(losses.values()).backward()
    arrays |= {f"out/{name}": value for name, value in losses.items()}
    for prefix, values in sets.items():
        arrays |= {f"in/outputs.{prefix}{kind}": value for kind, value in values.items()}
        arrays |= {f"grad/outputs.{prefix}{kind}": value.grad for kind, value in values.items()}
    arrays |= {f"in/targets.{i}.{k}": value for i, each in enumerate(truth) for k, value in each.items()}
    return {"class": "SetCriterion", **arguments, "matcher": MATCHER}, "losses are not weighted", arrays


def mask_boxes() -> Recording:
    """Boxes of masks by MaskDINO's `masks_to_boxes` and by detectron2's `BitMasks`: empty, pixels, rows, full."""
    from detectron2.structures import BitMasks
    from projects.maskdino.utils.box_ops import box_xyxy_to_cxcywh, masks_to_boxes

    masks = torch.zeros(7, 9, 14, dtype=torch.bool)
    masks[1, 0, 0] = masks[2, 8, 13] = masks[3, 4, 5] = True
    masks[4, 3] = masks[5, :, 6] = masks[6] = True
    boxes = {"mask2box": masks_to_boxes(masks), "bitmask": BitMasks(masks).get_bounding_boxes().tensor}
    size = torch.tensor([14.0, 9.0, 14.0, 9.0])
    arrays: Arrays = {"in/masks": masks}
    for rule, value in boxes.items():
        arrays |= {f"out/{rule}_xyxy": value, f"out/{rule}_cxcywh_norm": box_xyxy_to_cxcywh(value) / size}
    functions = "maskdino.utils.box_ops.masks_to_boxes, detectron2 BitMasks.get_bounding_boxes"
    return {"functions": functions}, "", arrays


def resnet() -> Recording:
    """ResNet of detrex with frozen batch norms."""
    from detrex.modeling.backbone import BasicStem, ResNet
    from detrex.modeling.backbone.resnet import BottleneckBlock

    stages = [(2, 1, 8, 4, 16), (1, 2, 16, 5, 20), (1, 2, 20, 6, 24), (1, 2, 24, 7, 28)]
    module = ResNet(
        stem=BasicStem(in_channels=3, out_channels=8, norm="FrozenBN"),
        stages=[
            ResNet.make_stage(
                BottleneckBlock,
                blocks,
                stride_per_block=[stride] + [1] * (blocks - 1),
                in_channels=inputs,
                bottleneck_channels=width,
                out_channels=outputs,
                norm="FrozenBN",
                stride_in_1x1=False,
            )
            for blocks, stride, inputs, width, outputs in stages
        ],
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=1,
    ).eval()
    arrays = quantise(module) | {"in/image": torch.randn(1, 3, 32, 64)}
    arrays |= {f"out/{name}": value for name, value in module(arrays["in/image"]).items()}
    about = {
        "class": "detrex ResNet",
        "stem_out": 8,
        "stages": [list(s) for s in stages],
        "stride_in_1x1": False,
    }
    return about, "stages: (blocks, stride, in, bottleneck, out)", arrays


RECORDINGS = (
    attention,
    sampling,
    pixel_encoder,
    box_positions,
    proposals,
    decoder,
    predictor,
    matcher,
    criterion,
    mask_boxes,
    resnet,
)


def stored(value: Tensor) -> np.ndarray:
    """The array of a tensor; booleans as uint8."""
    value = value.detach()
    return (value.to(torch.uint8) if value.dtype == torch.bool else value).contiguous().numpy()


def main() -> None:
    """Record every fixture into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    detrex_launch.make_importable()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    for name in ("detrex", "detectron2"):
        command = ["git", "-C", os.environ[name.upper()], "rev-parse", "HEAD"]
        versions[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    meta: dict[str, Any] = {"_versions": versions}
    for i, record in enumerate(RECORDINGS):
        torch.manual_seed(i)
        constructor, note, arrays = record()
        path = options.folder / f"{record.__name__}.npz"
        np.savez_compressed(path, **{name: stored(value) for name, value in arrays.items()})
        meta[path.name] = {"constructor": constructor, "note": note}
        if any(name.startswith("stateq/") for name in arrays):
            meta[path.name]["state_quantisation"] = f"state = stateq / {STEP}"
        sys.stdout.write(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB\n")
    (options.folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
