"""Section `peers`: models of other projects, where they can be imported, against a frame of ours.

The real detrex's MaskDINO loads our weights and its results are compared. Run it in the environment of `make seam`:

    DETREX=path DETECTRON2=path python tests/detrex_launch.py $PWD/scripts/benchmark.py peers

VidEoMT of `transformers` has random weights, so that only its time is compared.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import peer_layout
import torch
from bench_common import (
    LIMITS,
    MASK_LIMIT,
    OUTPUT,
    SIZES,
    Bench,
    Row,
    make_frame,
    mask_difference,
    models,
    past_queries,
    precision,
    relative_difference,
)
from peer_layout import peer_of, read_out
from torch import Tensor, nn

from local2global.boxes import mask_to_box
from local2global.modeling import segmenter
from local2global.modeling.model import PIXEL_MEAN, PIXEL_STD, Local2Global
from local2global.modeling.variants import ImageTracker
from local2global.results.instances import VideoPostprocessor
from local2global.weights.checkpoint import to_detrex

#: (layers, width, heads) of the published sizes.
VIDEOMT = {"VidEoMT-S": (12, 384, 6), "VidEoMT-L": (24, 1024, 16)}
VIDEOMT_SIZE = (640, 640)
DETREX_QUERIES = 300


def peers(bench: Bench) -> Iterator[Row]:
    """One frame through each importable peer."""
    yield from _detrex(bench)
    yield from videomt(bench)


@torch.inference_mode()
def videomt(bench: Bench) -> Iterator[Row]:
    """Frames of 640x640 to masks at stride 4."""
    try:
        from transformers import VideomtConfig, VideomtForUniversalSegmentation
    except ImportError:
        sys.stderr.write("peers: transformers has no VidEoMT here\n")
        return
    model = models(bench.device).ours
    image, past = make_frame(VIDEOMT_SIZE, 3, bench.device), past_queries(model, VIDEOMT_SIZE)
    pixels = torch.randn(1, 1, 3, *VIDEOMT_SIZE, device=bench.device)
    for name, (layers, width, heads) in VIDEOMT.items():
        config = VideomtConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=VIDEOMT_SIZE[0]
        )
        theirs = VideomtForUniversalSegmentation(config).to(bench.device).eval()
        for dtype in ("fp32", "bf16"):

            def ours(dtype: str = dtype) -> Any:
                with precision(bench.device, dtype):
                    return model.step(model.encode([image]), past)

            def peer(dtype: str = dtype, theirs: nn.Module = theirs) -> Any:
                with precision(bench.device, dtype):
                    return theirs(pixels)

            row = bench.compare("peers", name, ours, peer, 0.0, 0.0, dtype=dtype)
            yield {**row, "agree": None, "difference": None}


@torch.inference_mode()
def _detrex(bench: Bench) -> Iterator[Row]:
    """One image of 384x640 with 300 queries to masks at 720p: ours, then the peer layout, against detrex.

    In row `detrex/peer layout`, "ours" is the peer layout. Results are compared with MaskDINO's boxes of masks.
    """
    ours = copy.deepcopy(models(bench.device, DETREX_QUERIES).ours)
    ours.tracker = ImageTracker()  # MaskDINO has no tracker
    layout = peer_of(ours)
    try:
        real = maskdino_of(ours)
    except ImportError as error:
        sys.stderr.write(f"peers: detrex cannot be imported ({error})\n")
        return
    image = make_frame(SIZES[0], 3, bench.device)
    inputs = [{"image": image, "height": OUTPUT[0], "width": OUTPUT[1]}]
    raw: dict[str, Tensor] = {}
    hook = real.sem_seg_head.register_forward_hook(lambda *call: raw.update(call[-1][0]))
    # detrex calls `.cuda()` in its decoder
    stay = (
        mock.patch.object(torch.Tensor, "cuda", lambda x: x) if bench.device.type == "cpu" else nullcontext()
    )

    def theirs() -> Any:
        with stay:
            return real(inputs)

    def step(model: Local2Global) -> Any:
        return model.step(model.encode([image]), None)

    def mine() -> Any:
        with VideoPostprocessor(OUTPUT, threshold=0.0, spill=False) as post:
            return post.update(step(ours))

    def in_layout() -> Any:
        return read_out(step(layout), SIZES[0], SIZES[0], OUTPUT)

    theirs()
    hook.remove()
    for name, arm, model in (("detrex", mine, ours), ("detrex/peer layout", in_layout, layout)):
        with (
            mock.patch.object(segmenter, "mask_to_box", _maskdino_boxes),
            mock.patch.object(peer_layout, "planes_to_box", _maskdino_boxes),
        ):
            predictions = step(model)
        unlike = mask_difference(predictions.masks > 0, raw["pred_masks"] > 0)
        difference = relative_difference(predictions.logits, raw["pred_logits"])
        row = bench.compare("peers", name, arm, theirs, difference, LIMITS["fp32"], masks_unlike=unlike)
        yield {**row, "agree": row["agree"] and unlike <= MASK_LIMIT}


def _maskdino_boxes(masks: Tensor, fallback: Tensor, extent: Tensor) -> Tensor:
    """Mask2Box by MaskDINO's rule for frames without padding: the last pixel does not count."""
    del extent
    return mask_to_box(masks, fallback.new_tensor((1.0, 1.0, 0.0, 0.0)).expand_as(fallback), edge=0)


def maskdino_of(ours: Local2Global) -> nn.Module:
    """Build the real MaskDINO with the arguments of detrex's `maskdino_r50` and our weights.

    Raises:
        ImportError: if detrex cannot be imported.
    """
    from detectron2.layers import ShapeSpec
    from detrex.modeling.backbone import BasicStem, ResNet
    from projects.maskdino.maskdino import MaskDINO
    from projects.maskdino.modeling.criterion import SetCriterion
    from projects.maskdino.modeling.meta_arch.maskdino_head import MaskDINOHead
    from projects.maskdino.modeling.pixel_decoder.maskdino_encoder import MaskDINOEncoder
    from projects.maskdino.modeling.transformer_decoder.maskdino_decoder import MaskDINODecoder

    classes, queries, names = len(ours.classes), ours.segmenter.num_queries, ["res2", "res3", "res4", "res5"]
    shape = {n: ShapeSpec(channels=256 << i, stride=4 << i) for i, n in enumerate(names)}
    pixel_decoder = MaskDINOEncoder(
        shape,
        transformer_dropout=0.0,
        transformer_nheads=8,
        transformer_dim_feedforward=2048,
        transformer_enc_layers=6,
        conv_dim=256,
        mask_dim=256,
        norm="GN",
        transformer_in_features=names[1:],
        common_stride=4,
        num_feature_levels=3,
        total_num_feature_levels=4,
        feature_order="low2high",
    )
    predictor = MaskDINODecoder(
        in_channels=256,
        num_classes=classes,
        hidden_dim=256,
        num_queries=queries,
        nheads=8,
        nhead=8,
        dim_feedforward=2048,
        dec_layers=9,
        mask_dim=256,
        enforce_input_project=False,
        two_stage=True,
        dn="seg",
        noise_scale=0.4,
        dn_num=100,
        initialize_box_type="mask2box",
        initial_pred=True,
        learn_tgt=False,
        total_num_feature_levels=4,
    )
    stages = ResNet.make_default_stages(depth=50, stride_in_1x1=False, norm="FrozenBN")
    stem = BasicStem(in_channels=3, out_channels=64, norm="FrozenBN")
    real = MaskDINO(
        backbone=ResNet(stem=stem, stages=stages, out_features=names, freeze_at=1),
        sem_seg_head=MaskDINOHead(
            shape, num_classes=classes, pixel_decoder=pixel_decoder, transformer_predictor=predictor
        ),
        criterion=SetCriterion(classes, None, {}, 0.1, [], 12544, 3.0, 0.75),
        num_queries=queries,
        object_mask_threshold=0.25,
        overlap_threshold=0.8,
        metadata=None,
        size_divisibility=32,
        sem_seg_postprocess_before_inference=True,
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
        semantic_on=False,
        panoptic_on=False,
        instance_on=True,
        test_topk_per_image=100,
        pano_temp=0.06,
    )
    real.load_state_dict(to_detrex(ours.state_dict()).state, strict=True)
    return real.to(ours.device).eval()
