"""Our modules reproduce recorded numbers of the real detrex and detectron2, and a wrong number fails.

`recorded/` is committed (`record.py` made it). The larger set beside the checkout is read where it is present.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_layout import peer_of

from local2global.errors import UserError
from parity.families import check
from parity.fixtures import Comparison, Fixture, read_fixtures
from parity.record import RECORDINGS

FOLDER = Path(__file__).resolve().parent / "recorded"
RECORDED = [recording.__name__ for recording in RECORDINGS]
GOLDEN = [
    "a1_msda_ref2_mask",
    "a2_msda_ref4_seqfirst",
    "a3_msda_core",
    "a4_msda_init",
    "b1_pixel_decoder_4lvl_low2high",
    "b2_pixel_decoder_3lvl_high2low",
    "b3_position_embedding_sine",
    "c1_sineembed",
    "c2_encoder_output_proposals_mask",
    "c2_encoder_output_proposals_nomask",
    "c3_inverse_sigmoid",
    "d1_transformer_decoder_d32",
    "d3_transformer_decoder_d256_unpatched",
    "e1_predictor_eval_mask2box",
    "e2_predictor_eval_bitmask",
    "f1_matcher",
    "f1b_matcher_empty_target",
    "f2_criterion",
    "f4_loss_functions",
    "f5_point_sampling",
    "g1_masks_to_boxes",
    "g2_masks_to_boxes_n0",
    "h1_resnet_tiny_frozenbn",
]
#: Fixtures of modules that the benchmark's peer replaces.
NETWORK = ("attention", "pixel_encoder", "decoder", "predictor", "resnet")


@pytest.fixture(scope="module")
def recorded():
    return read_fixtures(FOLDER)


@pytest.fixture(scope="module")
def golden_fixtures(golden):
    return read_fixtures(golden)


def assert_passes(result):
    assert result.passed, result.problems


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_array_agrees(recorded, name):
    assert_passes(check(replace(recorded[name], read=set())))


@pytest.mark.parametrize("name", NETWORK)
def test_the_benchmark_peer_reproduces_the_recorded_arrays(recorded, name):
    """The layout that our speed is compared with is held to the same numbers."""
    assert_passes(check(replace(recorded[name], built=peer_of, read=set())))


def test_the_recorded_folder_is_complete_and_small(recorded):
    assert sorted(recorded) == sorted(RECORDED)
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert max(sizes.values()) < 100_000, sizes
    versions = json.loads((FOLDER / "meta.json").read_text())["_versions"]
    assert set(versions) == {"torch", "numpy", "detrex", "detectron2"}
    assert len(versions["detrex"]) == len(versions["detectron2"]) == 40


@pytest.mark.parametrize("name", GOLDEN)
def test_every_golden_array_agrees(golden_fixtures, name):
    assert_passes(check(golden_fixtures[name]))


@pytest.mark.parametrize("name", [name for name in GOLDEN if name[0] in "abdeh"])
def test_the_benchmark_peer_reproduces_the_golden_arrays(golden_fixtures, name):
    assert_passes(check(replace(golden_fixtures[name], built=peer_of, read=set())))


def test_no_golden_fixture_is_left_out(golden_fixtures):
    assert sorted(golden_fixtures) == sorted(GOLDEN)


def changed(fixture, name, change):
    """A copy of a fixture with one array changed."""
    arrays = {**fixture.arrays, name: change(fixture.arrays[name].clone())}
    return replace(fixture, arrays=arrays, read=set())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("attention", "out/output"),
        ("attention", "grad/state.value_proj.bias"),
        ("decoder", "grad/memory"),
        ("decoder", "out/references.1"),
        ("predictor", "out/aux_outputs.1.pred_masks"),
        ("matcher", "rng/001_rand"),
        ("criterion", "out/loss_dice_0"),
        ("resnet", "out/res3"),
    ],
)
def test_one_wrong_number_fails(recorded, name, array):
    def add(value):
        value.view(-1)[0] += 3e-3
        return value

    assert not check(changed(recorded[name], array, add)).passed


def test_one_wrong_weight_fails(recorded):
    def add(value):
        value.view(-1)[0] += 1
        return value

    name = next(name for name in recorded["attention"].arrays if "sampling_offsets.bias" in name)
    assert not check(changed(recorded["attention"], name, add)).passed


def test_an_ignored_attention_mask_fails(recorded):
    """Some query pairs of the decoder fixture are barred from self-attention."""
    assert not check(changed(recorded["decoder"], "in/tgt_mask", torch.zeros_like)).passed


@pytest.mark.parametrize("extra", ["out/more", "grad/more", "in/more", "rng/999_rand"])
def test_an_array_that_no_check_reads_fails(recorded, extra):
    fixture = recorded["proposals"]
    more = replace(fixture, arrays={**fixture.arrays, extra: torch.zeros(2)}, read=set())
    assert any(extra in problem for problem in check(more).problems)


@pytest.mark.parametrize(
    ("constructor", "word"),
    [
        ({"class": "SomethingElse"}, "no family"),
        ({}, "no family"),
        ({"class": "PositionEmbeddingSine", "num_pos_feats": 4, "temperature": 20}, "temperature=20"),
    ],
)
def test_an_unsupported_constructor_fails_with_its_reason(constructor, word):
    result = check(
        Fixture("new", constructor, "", {"out/y": torch.zeros(1), "in/x": torch.zeros(1, 1, 2, 2)})
    )
    assert not result.passed
    assert word in result.problems[0]


def test_a_difference_is_measured_against_the_largest_entry():
    """Values up to 20 may differ by 2e-4, values up to 1 by 1e-5; infinities must be equal."""
    arrays = {
        "out/large": torch.tensor([20.0, 0.0]),
        "out/small": torch.tensor([0.5, 0.0]),
        "out/far": torch.tensor([torch.inf, 0.0]),
    }
    compare = Comparison(Fixture("x", {}, "", arrays))
    compare.output("out/large", torch.tensor([20.0, 1e-4]))
    compare.output("out/small", torch.tensor([0.5, 1e-4]))
    compare.output("out/far", torch.tensor([-torch.inf, 0.0]))
    assert [problem.split()[0] for problem in compare.problems()] == ["out/small", "out/far"]


def test_files_without_a_description_raise(tmp_path):
    with pytest.raises(UserError, match=r"no meta\.json"):
        read_fixtures(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"_versions": {}, "a.npz": {}}))
    with pytest.raises(UserError, match="a: not in the folder"):
        read_fixtures(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.zeros(1))
    np.savez(tmp_path / "b.npz", x=np.zeros(1))
    with pytest.raises(UserError, match=r"b: not in meta\.json"):
        read_fixtures(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "not JSON"), ("[]", "expected a dict"), ('{"a.npz": {"constructor": 3}}', "a: expected a dict")],
)
def test_a_damaged_description_raises_one_line(tmp_path, text, word):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=word) as error:
        read_fixtures(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_file_raises_one_line(tmp_path):
    (tmp_path / "meta.json").write_text('{"a.npz": {}}')
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"a\.npz: damaged") as error:
        read_fixtures(tmp_path)
    assert "\n" not in str(error.value)


def test_losses_without_masks_draw_no_points(recorded):
    """The criterion fixture with class and box losses only: the draws of the mask losses stay unread."""
    fixture = recorded["criterion"]
    # Each of the three sets draws the points of two matchings, then candidates and uniform points of its masks.
    arrays = {
        name: value
        for name, value in fixture.arrays.items()
        if not any(part in name for part in ("loss_mask", "loss_dice", "grad/"))
        and not (name.startswith("rng/") and int(name[4:7]) % 4 > 1)
    }
    constructor = {**fixture.constructor, "losses": ["labels", "boxes"]}
    assert_passes(check(replace(fixture, arrays=arrays, constructor=constructor, read=set())))
