"""The real detrex modules agree with ours at sizes without a recorded fixture, and load our weights.

Run by `make seam DETREX=path/to/detrex DETECTRON2=path/to/detectron2`.
"""

import os

import pytest
import torch

import detrex_launch
from local2global.modeling.backbone import ResNet
from local2global.weights.checkpoint import read_state, to_detrex
from parity.families import check
from parity.fixtures import Fixture

SMALL = {"depths": (2, 1, 1, 1), "hidden_sizes": (16, 24, 32, 40), "embedding_size": 8}
CHANNELS = dict(zip(("res2", "res3", "res4", "res5"), SMALL["hidden_sizes"], strict=True))

pytestmark = pytest.mark.detrex


@pytest.fixture(scope="module", autouse=True)
def _detrex():
    if not (os.environ.get("DETREX") and os.environ.get("DETECTRON2")):
        pytest.skip("no checkouts; run make seam DETREX=... DETECTRON2=...")
    detrex_launch.make_importable()
    pytest.importorskip("detrex", exc_type=ImportError)


def perturbed(module):
    """Add noise to every weight and return the module in evaluation mode."""
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(torch.randn_like(value) * 0.05)
    return module.eval()


def arrays_of(module, **groups):
    """A fixture's arrays: groups `in`, `out` and `mid`, and the state of the module."""
    state = {f"state/{name}": value for name, value in module.state_dict().items()}
    return state | {f"{group}/{k}": v for group, values in groups.items() for k, v in values.items()}


def numbered(name, values):
    return {f"{name}.{i}": value for i, value in enumerate(values)}


def padding_masks(sizes):
    """Padding masks of two frames; the second is padded in its last quarter of columns and third of rows."""
    masks = [torch.zeros(2, *size, dtype=torch.bool) for size in sizes]
    for mask in masks:
        mask[1, :, -(mask.shape[2] // 4) or mask.shape[2] :] = True
        mask[1, -(mask.shape[1] // 3) or mask.shape[1] :] = True
    return masks


def pixel_decoder(levels, order):
    """Return the level shapes, detrex's pixel decoder and its constructor arguments in fixture format."""
    from detectron2.layers import ShapeSpec
    from projects.maskdino.modeling.pixel_decoder.maskdino_encoder import MaskDINOEncoder

    arguments = dict(
        transformer_dropout=0.0,
        transformer_nheads=2,
        transformer_dim_feedforward=48,
        transformer_enc_layers=2,
        conv_dim=32,
        mask_dim=32,
        norm="GN",
        transformer_in_features=["res3", "res4", "res5"],
        common_stride=4,
        num_feature_levels=3,
        total_num_feature_levels=levels,
        feature_order=order,
    )
    shape = {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(CHANNELS.items())}
    sizes = {name: [c, 4 * 2**i] for i, (name, c) in enumerate(CHANNELS.items())}
    return shape, MaskDINOEncoder(shape, **arguments), {**arguments, "input_shape": sizes}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("order", ["low2high", "high2low"])
@pytest.mark.parametrize("levels", [3, 4, 5, 6])
@torch.no_grad()
def test_the_pixel_decoder_with_three_to_six_levels(levels, order, padded):
    """With two or more extra levels, detrex reverses the levels but not their positions."""
    _, module, arguments = pixel_decoder(levels, order)
    perturbed(module)
    maps = {name: torch.randn(2, c, 64 >> i, 96 >> i) for i, (name, c) in enumerate(CHANNELS.items())}
    captured = {}
    module.transformer.register_forward_pre_hook(lambda _, inputs: captured.update(sources=inputs[0]))
    module.forward_features(maps, None)
    masks = padding_masks([source.shape[-2:] for source in captured["sources"]]) if padded else None
    mask_features, finest, levels_out = module.forward_features(maps, masks)
    out = {"mask_features": mask_features, "transformer_encoder_features": finest}
    arrays = arrays_of(
        module,
        **{"in": maps | numbered("masks", masks or [])},
        out=out | numbered("multi_scale_features", levels_out),
        mid=numbered("transformer_srcs", captured["sources"]),
    )
    result = check(Fixture("new", {"class": "MaskDINOEncoder", **arguments}, "", arrays))
    assert result.passed, result.problems


def predictor(dim, **changes):
    """Return detrex's predictor and its constructor arguments."""
    from projects.maskdino.modeling.transformer_decoder.maskdino_decoder import MaskDINODecoder

    arguments = dict(
        in_channels=dim,
        num_classes=3,
        hidden_dim=dim,
        num_queries=6,
        nheads=2,
        nhead=2,
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
    arguments |= changes
    return MaskDINODecoder(**arguments), {**arguments, "activation": "relu", "dropout": 0.0}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("initial", [True, False], ids=["initial", "no initial"])
@torch.no_grad()
def test_the_predictor_with_and_without_padding(padded, initial):
    """Padding masks are not reversed with the levels in detrex, and padded tokens can be selected."""
    module, arguments = predictor(256, initialize_box_type="no", initial_pred=initial)
    perturbed(module)
    sizes = [(8, 12), (4, 6), (2, 3)]
    maps = [torch.randn(2, 256, *size) for size in sizes]
    fine = torch.randn(2, 32, 16, 24)
    padding = padding_masks(sizes)[::-1] if padded else None
    out, _ = module(maps, fine, padding)
    kinds = ("pred_logits", "pred_boxes", "pred_masks")
    sets = {"": out, "interm_outputs.": out["interm_outputs"]}
    sets |= {f"aux_outputs.{i}.": value for i, value in enumerate(out["aux_outputs"])}
    arrays = arrays_of(
        module,
        **{"in": numbered("x", maps) | numbered("masks", padding or []) | {"mask_features": fine}},
        out={f"{prefix}{kind}": value[kind] for prefix, value in sets.items() for kind in kinds},
    )
    result = check(Fixture("new", {"class": "MaskDINODecoder", **arguments}, "", arrays))
    assert result.passed, result.problems


@pytest.mark.parametrize("normalize", [True, False])
def test_grid_positions_under_a_padding_mask(normalize):
    from projects.maskdino.modeling.pixel_decoder.position_encoding import PositionEmbeddingSine

    module = PositionEmbeddingSine(8, normalize=normalize)
    x, [mask] = torch.zeros(2, 3, 6, 8), padding_masks([(6, 8)])
    arrays = {"in/x": x, "in/mask": mask, "out/with_mask": module(x, mask), "out/no_mask": module(x)}
    constructor = {"class": "PositionEmbeddingSine", "num_pos_feats": 8, "normalize": normalize}
    result = check(Fixture("new", constructor, "", arrays))
    assert result.passed, result.problems


def test_maskdino_loads_our_checkpoint_strictly(tiny):
    """Our weights under detrex's names load into MaskDINO, and MaskDINO's weights load back unchanged."""
    from projects.maskdino.maskdino import MaskDINO
    from projects.maskdino.modeling.criterion import SetCriterion
    from projects.maskdino.modeling.meta_arch.maskdino_head import MaskDINOHead

    model = tiny(backbone=ResNet(**SMALL), channels=CHANNELS)
    shape, pixel, _ = pixel_decoder(3, "low2high")
    real = MaskDINO(
        backbone=ResNet(**SMALL),
        sem_seg_head=MaskDINOHead(
            shape, num_classes=3, pixel_decoder=pixel, transformer_predictor=predictor(32)[0]
        ),
        criterion=SetCriterion(3, None, {}, 0.1, [], 8, 3.0, 0.75),
        num_queries=6,
        object_mask_threshold=0.25,
        overlap_threshold=0.8,
        metadata=None,
        size_divisibility=32,
        sem_seg_postprocess_before_inference=True,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        semantic_on=False,
        panoptic_on=False,
        instance_on=True,
        test_topk_per_image=10,
        pano_temp=0.06,
    )
    real.load_state_dict(to_detrex(model.state_dict()).state, strict=True)
    restored = read_state(real.state_dict()).tensors
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("segmenter.")}
    assert all(torch.equal(restored[name], value) for name, value in ours.items())
