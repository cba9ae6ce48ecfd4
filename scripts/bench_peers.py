"""Section `peers`: models of other people, where they can be imported, beside ours on frames of the same size.

The real detrex's MaskDINO has our weights: its results are compared, and how far the benchmark's peer layout takes its
time.  It is imported from an environment like that of `make seam`:

    DETREX=path DETECTRON2=path python tests/detrex_launch.py $PWD/scripts/benchmark.py peers

VidEoMT of transformers has random weights: only time can be compared.
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
from bench_inference import LIMITS, MASKS_UNLIKE
from bench_measure import Bench, Row, apart, disagreement
from bench_setup import OUTPUT, frame_of, pair, past_of, precision
from peer_layout import peer_of, read_out
from torch import Tensor, nn

from local2global.boxes import mask_to_box
from local2global.modeling import segmenter
from local2global.modeling.model import PIXEL_MEAN, PIXEL_STD, Local2Global
from local2global.modeling.variants import BypassTracker
from local2global.results.instances import VideoPostprocessor
from local2global.weights.checkpoint import to_detrex

SIZE = (640, 640)
#: Layers, width and heads of the two published sizes.
VIDEOMT = {"VidEoMT-S": (12, 384, 6), "VidEoMT-L": (24, 1024, 16)}
DETREX_SIZE = (384, 640)
DETREX_QUERIES = 300
LEVELS = {"res2": (256, 4), "res3": (512, 8), "res4": (1024, 16), "res5": (2048, 32)}


def peers(bench: Bench) -> Iterator[Row]:
    """One frame through each peer that is there, against a frame of ours."""
    yield from _detrex(bench)
    yield from _videomt(bench)


@torch.inference_mode()
def _videomt(bench: Bench) -> list[Row]:
    """Frames of 640x640; masks at stride 4."""
    try:
        from transformers import VideomtConfig, VideomtForUniversalSegmentation
    except ImportError:
        return []
    both = pair(bench.device)
    image, past = frame_of(SIZE, 3, bench.device), past_of(both.ours, SIZE)
    rows = []
    for name, (layers, width, heads) in VIDEOMT.items():
        config = VideomtConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=SIZE[0],
        )
        theirs = VideomtForUniversalSegmentation(config).to(bench.device).eval()
        pixels = torch.randn(1, 1, 3, *SIZE, device=bench.device)
        for dtype in ("fp32", "bf16"):

            def ours(dtype: str = dtype) -> Any:
                with precision(bench.device, dtype):
                    return both.ours.step(both.ours.encode([image]), past)

            def peer(dtype: str = dtype, theirs: Any = theirs, pixels: Any = pixels) -> Any:
                with precision(bench.device, dtype):
                    return theirs(pixels)

            row = bench.compare("peers", name, ours, peer, 0.0, 0.0, dtype=dtype)
            rows.append({**row, "agree": None})
    return rows


@torch.inference_mode()
def _detrex(bench: Bench) -> list[Row]:
    """One image of 384x640 with 300 queries, to masks at 720p: ours and the peer layout against the real detrex.

    In the row `detrex/peer layout`, "ours" is the peer layout.  Results are compared with boxes of masks by MaskDINO's
    rule, times taken with ours.
    """
    ours = copy.deepcopy(pair(bench.device, DETREX_QUERIES).ours)
    ours.tracker = BypassTracker()  # MaskDINO on one image
    layout = peer_of(ours)
    try:
        real = maskdino_of(ours)
    except ImportError as error:
        sys.stderr.write(f"peers: no detrex here ({error})\n")
        return []
    image = frame_of(DETREX_SIZE, 3, bench.device)
    given = [{"image": image, "height": OUTPUT[0], "width": OUTPUT[1]}]
    found: dict[str, Tensor] = {}
    hook = real.sem_seg_head.register_forward_hook(lambda *call: found.update(call[-1][0]))

    def theirs() -> Any:
        # where there is no GPU, what it sends there stays
        at_home = mock.patch.object(torch.Tensor, "cuda", lambda x: x)
        with at_home if bench.device.type == "cpu" else nullcontext():
            return real(given)

    theirs()
    hook.remove()

    def arm(model: Local2Global) -> Any:
        return model.step(model.encode([image]), None)

    def mine() -> Any:
        with VideoPostprocessor(OUTPUT, threshold=0.0, spill=False) as post:
            return post.update(arm(ours))

    def in_layout() -> Any:
        return read_out(arm(layout), DETREX_SIZE, DETREX_SIZE, OUTPUT)

    rows = []
    for name, function, model in (("detrex", mine, ours), ("detrex/peer layout", in_layout, layout)):
        with (
            mock.patch.object(segmenter, "mask_to_box", _boxes_of_maskdino),
            mock.patch.object(peer_layout, "planes_to_box", _boxes_of_maskdino),
        ):
            made = arm(model)
        unlike = disagreement(made.masks > 0, found["pred_masks"] > 0)
        row = bench.compare(
            "peers",
            name,
            function,
            theirs,
            apart(made.logits, found["pred_logits"]),
            LIMITS["fp32"],
            masks_unlike=unlike,
        )
        rows.append({**row, "agree": row["agree"] and unlike <= MASKS_UNLIKE})
    return rows


def _boxes_of_maskdino(masks: Tensor, fallback: Tensor, extent: Tensor) -> Tensor:
    """Mask2Box by MaskDINO's rule, of frames without padding: a box ends before its mask's last pixel."""
    del extent
    return mask_to_box(masks, fallback.new_tensor((1.0, 1.0, 0.0, 0.0)).expand_as(fallback), edge=0)


def maskdino_of(ours: Local2Global) -> nn.Module:
    """The real MaskDINO, as detrex's `maskdino_r50` assembles it, with our weights.

    Its config is not loaded: at detrex's newest commit it cannot be.

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

    classes, queries, dim = len(ours.classes), ours.segmenter.num_queries, 256
    shape = {name: ShapeSpec(channels=channels, stride=stride) for name, (channels, stride) in LEVELS.items()}
    pixel_decoder = MaskDINOEncoder(
        shape,
        transformer_dropout=0.0,
        transformer_nheads=8,
        transformer_dim_feedforward=2048,
        transformer_enc_layers=6,
        conv_dim=dim,
        mask_dim=dim,
        norm="GN",
        transformer_in_features=["res3", "res4", "res5"],
        common_stride=4,
        num_feature_levels=3,
        total_num_feature_levels=4,
        feature_order="low2high",
    )
    predictor = MaskDINODecoder(
        in_channels=dim,
        num_classes=classes,
        hidden_dim=dim,
        num_queries=queries,
        nheads=8,
        nhead=8,
        dim_feedforward=2048,
        dec_layers=9,
        mask_dim=dim,
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
    real = MaskDINO(
        backbone=ResNet(
            stem=BasicStem(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=ResNet.make_default_stages(depth=50, stride_in_1x1=False, norm="FrozenBN"),
            out_features=list(LEVELS),
            freeze_at=1,
        ),
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
