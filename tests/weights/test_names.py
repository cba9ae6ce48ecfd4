"""Parameter names of other projects: every tensor is translated, and the round trip is exact."""

import re

import pytest
import torch
from torch import nn

from local2global.errors import UserError
from local2global.modeling.backbone import ResNet
from local2global.weights.checkpoint import load_weights, read_state, to_detrex
from local2global.weights.names import HF_RESNET, MASKDINO, PROJECTS, recognise, rename, to_ours, to_theirs

SMALL = {"depths": (2, 1, 1, 1), "hidden_sizes": (16, 24, 32, 40), "embedding_size": 8}


def listed(shared, name):
    """Zero tensors with the names and shapes of a parameter list whose layer numbers are collapsed to *."""
    path = shared / "facts" / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"no list of parameters at {path}")
    found = {}
    for line in path.read_text().splitlines():
        key, shape, *_ = line.split("\t")
        found[key.replace("*", "0")] = torch.zeros([int(n) for n in re.findall(r"\d+", shape)])
    return found


@pytest.mark.parametrize("name", ["detrex_maskdino_r50_c80", "official_maskdino_r50_hid2048_c80"])
def test_every_tensor_of_maskdino_is_translated(shared, name):
    state = read_state(listed(shared, f"{name}_collapsed"))
    assert state.project is MASKDINO
    assert state.unknown == ()
    assert [key for key, _ in state.dropped] == ["criterion.empty_weight"]


def test_mask2former_is_translated_in_part_and_the_rest_is_reported(shared):
    state = read_state(listed(shared, "official_mask2former_r50_c80_collapsed"))
    assert state.project.name == "Mask2Former"
    assert {"segmenter.encoder.input_proj.2.0.weight", "segmenter.mask_embed.layers.0.bias"} <= set(
        state.tensors
    )
    assert state.tensors["segmenter.encoder.input_proj.0.0.weight"].shape[1] == 512  # level 0 is res3 here
    # query_feat and query_embed are dropped with a reason; class heads and masked attention have no counterpart
    parts = {key.split(".")[2] for key in state.unknown}
    assert parts == {"class_embed", "level_embed", "transformer_cross_attention_layers"}
    assert sum("queries" in why for _, why in state.dropped) == 2


def test_the_round_trip_to_detrex_is_bit_equal(tiny):
    model = tiny()
    ours = {k: v for k, v in model.state_dict().items() if not k.startswith("segmenter.backbone.")}
    theirs = to_detrex(ours)
    assert {key.split(".")[0] for key in theirs.unknown} == {"tracker"}
    back = read_state(theirs.state)
    assert back.unknown == ()
    assert set(back.tensors) == {key for key in ours if key.startswith("segmenter.")}
    assert all(torch.equal(value, ours[key]) for key, value in back.tensors.items())
    boxes = [key for key in theirs.state if "bbox_embed" in key]
    assert len(boxes) == 2 * 6  # one head, stored once per layer


def test_unequal_copies_of_a_shared_head_are_refused():
    state = {"bbox_embed.0.layers.0.bias": torch.zeros(2), "bbox_embed.1.layers.0.bias": torch.ones(2)}
    rows = [("bbox_embed.**", "bbox_embed.#.**")]
    with pytest.raises(UserError, match=r"bbox_embed\.1\.layers\.0\.bias differs from the tensor it shares"):
        to_ours(state, rows)


def rows_of(name):
    return next(project for project in PROJECTS if project.name == name).rows


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("torchvision ResNet", {"fc.weight", "fc.bias", "bn1.num_batches_tracked"}),
        ("transformers ResNet", {"classifier.1.weight"}),
        ("detectron2 ResNet", {"stem.fc.weight"}),
        ("detectron2 detector", {"proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.bias"}),
        ("backbone", set()),
    ],
)
def test_a_resnet_is_loaded_from_every_project(name, extra):
    torch.manual_seed(1)
    source, target = (nn.ModuleDict({"backbone": ResNet(**SMALL)}) for _ in range(2))
    ours = {f"segmenter.{key}": value for key, value in source.state_dict().items()}
    theirs = to_theirs(ours, rows_of(name))
    assert theirs.unknown == ()
    content = {**theirs.state, **{key: torch.zeros(1) for key in extra}}
    holder = nn.ModuleDict({"segmenter": target})
    report = load_weights(holder, content)
    assert report.project == name
    assert {key for key, _ in report.dropped} == extra
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_our_names_belong_to_no_other_project():
    assert recognise(["segmenter.backbone.stem.conv1.weight", "tracker.aligner.layers.0.norm.weight"]) is None
    with pytest.raises(KeyError):
        rename("embedder.unknown", HF_RESNET)
