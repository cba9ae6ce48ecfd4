"""Parity with the real detrex and detectron2 on numbers they produced, and that a wrong number is found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peer_layout import peer_of

from local2global.errors import UserError
from parity.families import check
from parity.fixtures import Comparison, Fixture, read_fixtures

FAMILIES = [
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


@pytest.fixture(scope="module")
def fixtures(golden):
    return read_fixtures(golden)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_array_agrees(fixtures, name):
    result = check(fixtures[name])
    assert result.passed, result.problems


@pytest.mark.parametrize("name", [name for name in FAMILIES if name[0] in "abdeh"])
def test_so_does_the_benchmarks_peer(fixtures, name):
    """What ours is timed against must be as right as ours."""
    result = check(replace(fixtures[name], built=peer_of, read=set()))
    assert result.passed, result.problems


def test_no_fixture_is_left_out(fixtures):
    assert sorted(fixtures) == sorted(FAMILIES)


def changed(fixture, name, change):
    arrays = {**fixture.arrays, name: change(fixture.arrays[name].clone())}
    return replace(fixture, arrays=arrays, read=set())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a1_msda_ref2_mask", "out/output"),
        ("a1_msda_ref2_mask", "grad/state.value_proj.bias"),
        ("a1_msda_ref2_mask", "state/sampling_offsets.bias"),
        ("c3_inverse_sigmoid", "out/y"),
        ("d1_transformer_decoder_d32", "grad/memory"),
        ("f1_matcher", "rng/001_rand"),
        ("f2_criterion", "out/loss_dice_1"),
    ],
)
def test_one_wrong_number_is_found(fixtures, name, array):
    def spoil(value):
        value.view(-1)[0] += 3e-3
        return value

    assert not check(changed(fixtures[name], array, spoil)).passed


def test_an_attention_mask_that_is_ignored_is_found(fixtures):
    """d1's queries may not all look at one another."""
    assert not check(changed(fixtures["d1_transformer_decoder_d32"], "in/tgt_mask", torch.zeros_like)).passed


def test_what_nobody_compares_or_reads_is_a_failure(fixtures):
    for extra in ("out/more", "grad/more", "in/more", "rng/999_rand"):
        fixture = fixtures["c3_inverse_sigmoid"]
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
def test_what_we_do_not_build_is_a_failure_with_a_reason(constructor, word):
    result = check(
        Fixture("new", constructor, "", {"out/y": torch.zeros(1), "in/x": torch.zeros(1, 1, 2, 2)})
    )
    assert not result.passed
    assert word in result.problems[0]


def test_a_difference_counts_against_the_arrays_own_scale():
    """Values up to 20 may differ by 2e-4, values up to 1 by 1e-5; infinities must be the same."""
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


def test_files_and_descriptions_must_go_together(tmp_path):
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
def test_a_damaged_description_is_one_line(tmp_path, text, word):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(UserError, match=word) as error:
        read_fixtures(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "meta.json").write_text('{"a.npz": {}}')
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"a\.npz: damaged") as error:
        read_fixtures(tmp_path)
    assert "\n" not in str(error.value)


def test_losses_without_masks_draw_no_points_for_them(fixtures):
    """f2 again with only classes and boxes: the draws of its mask losses are left unread, and nothing else."""
    whole = fixtures["f2_criterion"]
    # Each of the four sets draws two matchings, then candidates and uniform points of its masks.
    kept = {
        name: value
        for name, value in whole.arrays.items()
        if not any(part in name for part in ("loss_mask", "loss_dice", "point_coords", "grad/"))
        and not (name.startswith("rng/") and int(name[4:7]) % 4 > 1)
    }
    constructor = {**whole.constructor, "losses": ["labels", "boxes"]}
    result = check(replace(whole, arrays=kept, constructor=constructor, read=set()))
    assert result.passed, result.problems
