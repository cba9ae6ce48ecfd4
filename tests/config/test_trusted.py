"""A yaml config is data: it builds listed callables only, with arguments of the right type."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor

from local2global.config.saved import MAX_NODES, load_resolved, load_yaml_config, read_yaml, save_resolved
from local2global.config.targets import check_arguments, current_name, locate, type_error
from local2global.config.trusted import RUN_PARTS
from local2global.data.augment import ClipAugmentation, Turn
from local2global.data.clips import Augmentation
from local2global.data.datasets import VideoDataset
from local2global.data.generated.shapes import load_shapes
from local2global.data.loader import Curriculum, build_train_loader
from local2global.data.scene_cuts import SceneCuts
from local2global.errors import UserError
from local2global.lazy import load_config, resolve
from local2global.modeling.tracker import Tracker
from local2global.modeling.variants import ImageTracker, RememberingTracker
from miniatures import write_videos

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.py")
    if path.relative_to(CONFIGS).parts[0] not in ("common", "detrex")
)


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_config_reloads_from_its_config_yaml(name, tmp_path):
    """As the config beside weights, and as the config of a command; its outputs go to the run's folder."""
    run = tmp_path / "run"
    overrides = [f"train.output_dir={run}"]
    if name.startswith("custom"):
        write_videos(tmp_path / "images", tmp_path / "mine.json", [{"id": 3, "name": "newt"}])
        overrides += [f"data.images={tmp_path / 'images'}", f"data.annotations={tmp_path / 'mine.json'}"]
    cfg = load_config(CONFIGS / name, overrides)
    run.mkdir()
    save_resolved(cfg, run / "config.yaml")
    model = load_resolved(run / "config.yaml", ("model",)).model
    assert resolve(model) == resolve(cfg)["model"]
    assert resolve(load_config(run / "config.yaml")) == resolve(cfg)


def outputs(folder):
    return {
        "train": {"output_dir": folder},
        "dataloader": {"evaluator": {"output_dir": f"{folder}/inference"}},
    }


@pytest.mark.parametrize("folder", ["/elsewhere", "../elsewhere", "a/../../elsewhere", "~/elsewhere"])
def test_a_yaml_config_writes_below_the_working_directory_or_its_own_folder(tmp_path, monkeypatch, folder):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "run" / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(outputs(folder)))
    with pytest.raises(UserError, match=r"config\.yaml: train\.output_dir=.*Add train\.output_dir=FOLDER"):
        load_config(path)
    cfg = load_config(path, ["train.output_dir=/mine"])
    assert cfg.dataloader.evaluator.output_dir == "/mine/inference"
    for inside in ("output/demo", str(tmp_path / "run"), str(tmp_path / "here" / "x")):
        path.write_text(yaml.safe_dump(outputs(inside)))
        assert load_config(path).dataloader.evaluator.output_dir == f"{inside}/inference"
    path.write_text(yaml.safe_dump({**outputs("/elsewhere"), "train": {"output_dir": "x"}}))
    with pytest.raises(UserError, match=r"dataloader\.evaluator\.output_dir=/elsewhere/inference"):
        load_config(path)


def test_a_yaml_config_does_not_enable_wandb_by_itself(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"train": {"wandb": {"enabled": True}}}))
    with pytest.raises(UserError, match=r"Add train\.wandb\.enabled=true or false"):
        load_config(path)
    assert load_config(path, ["train.wandb.enabled=true"]).train.wandb.enabled is True


@pytest.mark.parametrize("name", sorted(RUN_PARTS))
def test_every_listed_callable_exists_under_its_present_name(name):
    assert current_name(name) == name
    assert callable(locate(name))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "local2global.results.tracks.write_tracks",
        "local2global.postprocess.write_tracks",
        "local2global.data.writers.write_youtube_vis",
        "local2global.data.readers.vipseg.read_vipseg",
        "local2global.evaluation.submission.write_bundle",
        "local2global.modeling.backbone.torch.hub.load",
        "local2global.data.loader.os.system",
        "torch.nn.Module.load_state_dict",
        "torch.optim.os.system",
        "subprocess.run",
    ],
)
@pytest.mark.parametrize("key", ["model", "dataloader"])
def test_other_callables_are_refused_and_not_imported(tmp_path, target, key):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: {"part": {"_target_": target, "path": "x"}}}))
    for load in (load_resolved, load_config):
        with pytest.raises(UserError, match=rf"{key}\.part: a yaml config may not build|no target"):
            load(path)


def test_parts_of_a_run_are_refused_below_model(tmp_path):
    evaluator = {"_target_": "local2global.evaluation.ytvis.YTVISEvaluator", "output_dir": "x"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": evaluator}))
    with pytest.raises(UserError, match=r"model: a yaml config may not build"):
        load_resolved(path, ("model",))
    path.write_text(yaml.safe_dump({"dataloader": {"evaluator": evaluator}}))
    load_resolved(path)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("torch.nn.Linear", {"in_features": "many", "out_features": 1}, "in_features=many: expected a whole"),
        ("torch.nn.Linear", {"in_features": 1.5, "out_features": 1}, r"in_features=1\.5: expected a whole"),
        ("torch.nn.Linear", {"in_features": 1, "out_features": 1, "bias": "no"}, "bias=no: expected true or"),
        ("torch.nn.Dropout", {"p": "half"}, "p=half: expected a number"),
    ],
)
def test_arguments_are_checked_by_the_annotations(tmp_path, target, arguments, message):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"_target_": target, **arguments}}))
    with pytest.raises(UserError, match=rf"config\.yaml: model\.{message}"):
        load_resolved(path)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, int, ""),
        (1, float, ""),
        (1.0, int, "a whole number"),
        (1 << 70, int, "a smaller number"),
        (1 << 70, float, "a smaller number"),
        (math.nan, float, "a number"),
        (True, int, "a whole number"),
        ([1], int, "a whole number"),
        ({"a": 1}, str, "text"),
        ("a\0", Path, "text"),
        (None, int | None, ""),
        (None, int, "a whole number"),
        ("x", str | Path | None, ""),
        ("x", bool | int, "true or false or a whole number"),
        ("max", Literal["max", "mean"], ""),
        ("min", Literal["max", "mean"], "one of max, mean"),
        ([1, 2], Sequence[int], ""),
        ([1, "x"], Sequence[int], "a list whose values are each a whole number"),
        ("x", Sequence[str], "a list such as [1,2]"),
        ([1, 2], tuple[int, int], ""),
        ([1, 2, 3], tuple[int, int], "a list of 2 values"),
        ([1, 2, 3], tuple[int, ...], ""),
        ({"a": 1}, Mapping[str, float], ""),
        ({"a": "x"}, Mapping[str, float], "a mapping whose values are each a number"),
        ([{"id": 1}], Sequence[Mapping[str, Any]], ""),
        (["a"], Sequence[Mapping[str, Any]], "a list whose values are each a mapping"),
        ("x", Any, ""),
        ("x", Tensor, ""),
        ("${x}", int, ""),
        (["${x}", "???"], Sequence[int], ""),
        (torch.float32, int, ""),
    ],
)
def test_plain_types_lists_and_mappings_are_checked_and_other_types_are_not(value, kind, expected):
    assert type_error(value, kind) == expected


@pytest.mark.parametrize(
    ("target", "kind", "expected"),
    [
        (SceneCuts, SceneCuts, ""),
        (SceneCuts, SceneCuts | None, ""),
        (RememberingTracker, Tracker | ImageTracker, ""),
        (Turn, SceneCuts, "a component of type SceneCuts"),
        (Turn, SceneCuts | None, "a component of type SceneCuts or null"),
        (load_shapes, VideoDataset, ""),
        (load_shapes, SceneCuts, "a component of type SceneCuts"),
        (ClipAugmentation, Augmentation, ""),
        (SceneCuts, Augmentation, "a component of type Augmentation"),
        (SceneCuts, int, "a whole number"),
        (SceneCuts, Callable[[int], int], "a component that can be called"),
        (torch.nn.ReLU, Callable[[int], int], ""),
        (max, SceneCuts, ""),
        ("no.such.thing", SceneCuts, ""),
    ],
)
def test_a_component_is_checked_by_what_its_target_makes(target, kind, expected):
    assert type_error({"_target_": target}, kind) == expected


def test_an_argument_that_a_target_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"^cuts: SceneCuts has no parameter 'ends'\. Did you mean 'end'\?"):
        check_arguments({"_target_": SceneCuts, "ends": 0.5}, "cuts")
    check_arguments({"_target_": RememberingTracker, "aligner": None}, "passes on further keywords")


def test_every_component_of_a_list_is_checked():
    node = {"_target_": Curriculum, "loaders": [{"_target_": build_train_loader}, 3], "starts": [0]}
    with pytest.raises(
        UserError, match=r"^train\.loaders=.*: expected a list whose values are each a component"
    ):
        check_arguments(node, "train")


# --- Yaml files ---


def test_a_yaml_config_may_interpolate_its_own_keys(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "train: {max_iter: 3}\nlr_multiplier: {a: '${train.max_iter}', b: '${len:${.c}}', c: [1, 2]}\n"
    )
    cfg = load_config(path)
    assert (cfg.lr_multiplier.a, cfg.lr_multiplier.b) == (3, 2)


@pytest.mark.parametrize("text", ["a: ${oc.env:HOME}", "a: [{b: 'x${classes_of:secret.json}'}]"])
def test_a_yaml_config_calls_no_resolver(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml: a.*calls a resolver"):
        load_config(path)


def test_an_interpolation_without_its_end_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: {b: '${x'}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: a\.b: "):
        load_yaml_config(path)


def bomb(depth=40):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "aliases that expand"),
        ("a: &a [*a]", "aliases that expand"),
        ("a: " + json.dumps(list(range(MAX_NODES + 1))), "more than"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "not yaml"),
        ("a: \x00", "not yaml"),
        ("#" * 4_000_001, "larger than"),
    ],
    ids=["aliases", "self", "long", "very deep", "deep", "object", "control character", "large"],
)
def test_yaml_bombs_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    for load in (read_yaml, load_resolved, load_config):
        with pytest.raises(UserError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", r":2: 'c' is set more than once"),
        ("a: 010", r":1: '010' is a number of base 8 or 60"),
        ("a: [x, 1:30]", r":1: '1:30' is a number of base 8 or 60"),
        ("a: 2020-01-01", r":1: a timestamp of yaml is no setting"),
        ("a: !!binary aGVsbG8=", r":1: a binary of yaml is no setting"),
        ("a: !!set {x}", r":1: a set of yaml is no setting"),
        ("a: " + "9" * 5000, "not yaml: Exceeds the limit"),
    ],
)
def test_values_that_yaml_reads_as_something_else_are_refused(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_quoted_text_and_plain_numbers_are_read(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(
        "a: ['010', '1:30', 0, -0.5, 0x1F, 1_000, .inf, 0.05, no, '=']\nb: &b {c: 1}\nd: {<<: *b, e: 2}"
    )
    assert read_yaml(path)["a"] == ["010", "1:30", 0, -0.5, 31, 1000, math.inf, 0.05, False, "="]
    assert read_yaml(path)["d"] == {"c": 1, "e": 2}


def test_aliases_of_moderate_size_are_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("value", [3, "text", [], {"a": 1}, None])
def test_a_part_of_a_model_cannot_be_a_plain_value(value):
    node = {"_target_": "local2global.modeling.model.Local2Global", "segmenter": value}
    with pytest.raises(UserError, match=r"c\.yaml: model\.segmenter=.*expected a component with a _target_"):
        check_arguments(node, "c.yaml: model")


def test_a_part_of_a_class_that_extends_another_cannot_be_a_plain_value():
    """The parameter is the extended class's; the extending class passes keywords on."""
    node = {"_target_": "local2global.modeling.variants.RememberingTracker", "positions": 1.5}
    with pytest.raises(UserError, match=r"positions=1\.5: expected a component"):
        check_arguments(node, "c.yaml: model.tracker")
    node = {"_target_": "local2global.modeling.criterion.Criterion", "supervision": [1]}
    with pytest.raises(UserError, match=r"supervision=.*expected a component"):
        check_arguments(node, "c.yaml: model.criterion")
