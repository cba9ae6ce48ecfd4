"""LazyConfig: loads what detectron2's LazyConfig loads; unknown keys are errors."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from local2global import lazy
from local2global.engine.optim import parameter_groups
from local2global.errors import UserError
from local2global.lazy import (
    OwnLazyCall,
    OwnLazyConfig,
    apply_overrides,
    load_config,
    load_resolved,
    own_instantiate,
    resolve,
    save_resolved,
)

L = OwnLazyCall
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def standalone(monkeypatch):
    """Use our implementation even if detectron2 is installed."""
    monkeypatch.setattr(lazy, "LazyConfig", OwnLazyConfig)


@pytest.fixture
def files(tmp_path, standalone):
    """Two config folders without __init__.py; one imports from the other."""
    (tmp_path / "common").mkdir()
    (tmp_path / "ovis").mkdir()
    (tmp_path / "common" / "model.py").write_text(
        "from local2global.lazy import OwnLazyCall as L\n"
        "from torch.nn import Linear\n"
        "model = L(Linear)(in_features=3, out_features='${.in_features}')\n"
        "train = dict(max_iter=10, amp=dict(enabled=False))\n"
    )
    (tmp_path / "ovis" / "l2g.py").write_text(
        "from ..common.model import model, train\n"
        "train.amp.enabled = True\n"
        "model.in_features = 5\n"
        "names = ['a', 'b']\n"
        "_hidden = dict(x=1)\n"
        "number = 3\n"
    )
    return tmp_path


@pytest.fixture
def tracker():
    return DictConfig(
        {
            "model": {
                "tracker": {"aligner": L(nn.TransformerDecoderLayer)(d_model=8, nhead=2)},
                "classes": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
                "decoder": L(nn.Linear)(in_features=4, out_features="${len:${..classes}}"),
            },
            "train": {"max_iter": 10, "clip": {"enabled": True, "norm": 0.01}, "seed": 0, "folder": "run"},
        },
        flags={"allow_objects": True},
    )


# --- Loading ---


def test_relative_imports_are_resolved_by_path_and_dicts_become_configs(files):
    cfg = OwnLazyConfig.load(str(files / "ovis" / "l2g.py"))
    assert set(cfg) == {"model", "train"}, "only dicts and configs are returned"
    assert cfg.train.amp.enabled is True
    layer = own_instantiate(cfg.model)
    assert (layer.in_features, layer.out_features) == (5, 5)


def test_nothing_is_cached_between_loads(files):
    """Changes that the first load makes to an imported dict do not affect the second."""
    OwnLazyConfig.load(str(files / "ovis" / "l2g.py"))
    assert OwnLazyConfig.load(str(files / "common" / "model.py")).train.amp.enabled is False
    assert OwnLazyConfig.load(str(files / "common" / "model.py"), "model").in_features == 3


def test_keys_select_what_is_returned(files):
    path = str(files / "ovis" / "l2g.py")
    number, hidden = OwnLazyConfig.load(path, ("number", "_hidden"))
    assert number == 3
    assert isinstance(hidden, DictConfig)


def test_load_rel_is_relative_to_the_calling_file(files):
    (files / "ovis" / "rel.py").write_text(
        "from local2global.lazy import OwnLazyConfig\n"
        "train = OwnLazyConfig.load_rel('../common/model.py', 'train')\n"
    )
    assert OwnLazyConfig.load(str(files / "ovis" / "rel.py")).train.max_iter == 10


def test_nested_imports_are_resolved_from_each_files_own_folder(files):
    """demo/a.py imports ovis/l2g.py, which changes what it imports from common/model.py."""
    (files / "demo" / "deep").mkdir(parents=True)
    (files / "demo" / "deep" / "a.py").write_text(
        "from ...ovis.l2g import model, train\ntrain.max_iter = 7\n"
    )
    cfg = OwnLazyConfig.load(str(files / "demo" / "deep" / "a.py"))
    assert cfg.train == {"max_iter": 7, "amp": {"enabled": True}}
    assert cfg.model.in_features == 5


def test_interpolations_reach_across_files(files):
    """An interpolation in one file is resolved in the config that another file assembles, also inside a list."""
    (files / "common" / "data.py").write_text(
        "data = dict(seed='${train.seed}', sizes=[1, '${train.max_iter}'])\n"
    )
    (files / "ovis" / "all.py").write_text(
        "from ..common.data import data\nfrom ..common.model import train\ntrain.seed = 4\n"
    )
    cfg = load_config(files / "ovis" / "all.py", ["train.max_iter=3"])
    assert (cfg.data.seed, list(cfg.data.sizes)) == (4, [1, 3])


def test_a_list_config_is_returned_and_a_list_is_not(files):
    (files / "ovis" / "lists.py").write_text(
        "from omegaconf import ListConfig\nplain = [1]\nkept = ListConfig([dict(a=1), 2])\n"
        "train = dict(x=[1, [2, 3]])\n"
    )
    cfg = OwnLazyConfig.load(str(files / "ovis" / "lists.py"))
    assert set(cfg) == {"kept", "train"}
    assert isinstance(cfg.kept, ListConfig)
    assert apply_overrides(cfg, ["train.x.1.0=9", "~kept.1", "kept.0.a=5"]) == {
        "kept": [{"a": 5}],
        "train": {"x": [1, [9, 3]]},
    }


@pytest.mark.parametrize(
    "text",
    ["1 / 0", "from ..common.model import absent", "from .absent import x", "def f(:", "from . import l2g"],
)
def test_a_failed_load_changes_neither_modules_nor_the_import_system(files, text):
    before, importer = set(sys.modules), builtins.__import__
    (files / "ovis" / "bad.py").write_text(text)
    with pytest.raises((ZeroDivisionError, ImportError, SyntaxError)):
        OwnLazyConfig.load(str(files / "ovis" / "bad.py"))
    assert builtins.__import__ is importer
    assert set(sys.modules) == before


def test_import_is_never_patched_while_a_config_runs(files):
    (files / "ovis" / "spy.py").write_text("import builtins\nseen = dict(importer=builtins.__import__)\n")
    assert OwnLazyConfig.load(str(files / "ovis" / "spy.py"), "seen").importer is builtins.__import__


def test_circular_imports_are_reported(files):
    (files / "ovis" / "a.py").write_text("from .b import x\n")
    (files / "ovis" / "b.py").write_text("from .a import x\n")
    with pytest.raises(UserError, match=r"b\.py:1: ImportError: .*imports itself"):
        load_config(files / "ovis" / "a.py")


def test_saved_yaml_loads_again(files):
    cfg = OwnLazyConfig.load(str(files / "ovis" / "l2g.py"))
    OwnLazyConfig.save(cfg, str(files / "saved.yaml"))
    again = OwnLazyConfig.load(str(files / "saved.yaml"))
    assert again.model._target_ == "torch.nn.Linear", "the short name, as detectron2 saves it"
    assert own_instantiate(again.model).in_features == 5
    assert OmegaConf.is_interpolation(again.model, "out_features")


def test_saving_a_value_that_yaml_cannot_hold_warns(tmp_path):
    cfg = DictConfig({"a": (i for i in range(3)), "b": 1}, flags={"allow_objects": True})
    with pytest.warns(UserWarning, match="^a: saved as text"):
        OwnLazyConfig.save(cfg, str(tmp_path / "cfg.yaml"))
    assert OwnLazyConfig.load(str(tmp_path / "cfg.yaml")).b == 1


def test_class_names_in_yaml_written_by_detectron2_are_found(tmp_path):
    (tmp_path / "d2.yaml").write_text("norm: !!python/name:torch.nn.modules.normalization.LayerNorm ''\n")
    assert OwnLazyConfig.load(str(tmp_path / "d2.yaml")).norm is nn.LayerNorm


def test_yaml_creates_no_object(tmp_path):
    (tmp_path / "bad.yaml").write_text("x: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"bad\.yaml: not yaml: could not determine a constructor"):
        load_config(tmp_path / "bad.yaml")


def test_to_py_reads_like_python(tracker):
    lines = OwnLazyConfig.to_py(tracker).splitlines()
    assert "cfg.train.clip.norm = 0.01" in lines
    assert "cfg.model.decoder = torch.nn.modules.linear.Linear(in_features=4, out_features=2)" in lines


# --- Calls ---


def test_lazy_call_describes_a_call():
    node = L(nn.Linear)(in_features=2, out_features=3)
    assert isinstance(node, DictConfig)
    assert node._target_ is nn.Linear
    node.bias = nn.Identity()
    assert isinstance(node.bias, nn.Identity), "objects are allowed"


def keep(**parts):
    return parts


def test_instantiate_makes_inner_calls_first():
    node = L(keep)(
        layers=[L(nn.Linear)(in_features=1, out_features=1)], plain={"a": 1}, name=L("torch.nn.ReLU")()
    )
    built = own_instantiate(node)
    assert isinstance(built["layers"], list)
    assert isinstance(built["layers"][0], nn.Linear)
    assert isinstance(built["plain"], DictConfig), "a plain dict stays a config"
    assert isinstance(built["name"], nn.ReLU)


def test_instantiate_names_the_key_of_a_wrong_argument(tracker):
    tracker.model.decoder.wrong = 1
    with pytest.raises(TypeError, match=r"^model\.decoder: Linear: .*wrong"):
        own_instantiate(tracker.model.decoder)


def test_instantiate_reports_a_missing_value():
    with pytest.raises(UserError, match="in_features: required value is missing"):
        own_instantiate(L(nn.Linear)(in_features="???", out_features=1))


@pytest.mark.parametrize("name", ["torch.nn.Linearr", "nowhere.Thing", "torch"])
def test_a_target_that_does_not_exist_is_named(name):
    with pytest.raises(UserError, match=f"no target '{name}'"):
        own_instantiate(L(name)())


def test_lazy_call_requires_a_callable():
    with pytest.raises(TypeError, match="callable"):
        L(3)


def test_len_counts_a_list_elsewhere_in_the_config(tracker):
    assert own_instantiate(tracker.model.decoder).out_features == 2
    assert resolve(tracker)["model"]["decoder"]["out_features"] == 2
    tracker.model.classes = [{"id": 1, "name": "cat"}]
    assert own_instantiate(tracker.model.decoder).out_features == 1


# --- Overrides ---


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.max_iter=20", "train.max_iter", 20),
        ("train.clip.norm=1e-3", "train.clip.norm", 0.001),
        ("train.clip.enabled=false", "train.clip.enabled", False),
        ("train.clip={norm:2}", "train.clip", {"enabled": True, "norm": 2}),
        ("train.seed=null", "train.seed", None),
        ("train.folder='a b'", "train.folder", "a b"),
        ("model.tracker.aligner=null", "model.tracker.aligner", None),
        ("model.tracker.aligner.d_model=16", "model.tracker.aligner.d_model", 16),
        ("model.tracker.aligner.dim_feedforward=512", "model.tracker.aligner.dim_feedforward", 512),
        ("model.classes.1.name=bird", "model.classes.1.name", "bird"),
        ("+train.new=[1,2]", "train.new", [1, 2]),
        ("+brand.new=1", "brand.new", 1),
        ("++train.seed=7", "train.seed", 7),
    ],
)
def test_override_sets_the_value(tracker, text, key, value):
    assert apply_overrides(tracker, [text]) is tracker, "in place"
    assert OmegaConf.select(tracker, key) == value


def test_tilde_removes_a_key(tracker):
    apply_overrides(tracker, ["~train.clip.norm", "~train.seed=0"])
    assert tracker.train == {"max_iter": 10, "clip": {"enabled": True}, "folder": "run"}


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("model.aligner.dimm_feedforward=1", "model.tracker.aligner.dim_feedforward"),
        ("model.aligner.nheads=1", "model.tracker.aligner.nhead"),
        ("train.maxiter=1", "train.max_iter"),
        ("train.clip={nrom:1}", "train.clip.norm"),
        ("trian.seed=1", "train.seed"),
        ("~train.sed", "train.seed"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tracker, text, nearest):
    before = resolve(tracker)
    with pytest.raises(UserError, match=rf"no key '.*'\. Did you mean '{nearest}'\?$"):
        apply_overrides(tracker, [text])
    assert resolve(tracker) == before


def test_the_message_for_an_unknown_key(files):
    (files / "l2g_r50.py").write_text("model = dict(tracker=dict(aligner=dict(dim_feedforward=1024)))\n")
    with pytest.raises(UserError) as error:
        load_config(files / "l2g_r50.py", ["model.aligner.dimm=1"])
    near = "model.tracker.aligner.dim_feedforward"
    assert str(error.value) == f"{files}/l2g_r50.py: no key 'model.aligner.dimm'. Did you mean '{near}'?"


def test_a_key_without_a_similar_one_gets_no_suggestion(tracker):
    with pytest.raises(UserError, match=r"'zzzz'\. A new key is added with"):
        apply_overrides(tracker, ["zzzz=1"])


@pytest.mark.parametrize("text", ["train.seed", "train.seed=1,2", "train@other=3", "+train.seed.x=1"])
def test_malformed_overrides_are_refused(tracker, text):
    with pytest.raises(UserError, match=r"train|override"):
        apply_overrides(tracker, [text])


@pytest.mark.parametrize(
    "value",
    ["a=b", "a (copy)", "a,b", "a#b", "a & b", "it's", "José", "runs[1]/x", "2019", "true", "a:b", ""],
)
def test_where_a_key_holds_text_an_unquoted_value_is_literal(tracker, value):
    apply_overrides(tracker, [f"train.folder={value}"])
    assert tracker.train.folder == value


def test_a_leading_tilde_of_a_path_is_the_home_folder(tracker, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert apply_overrides(tracker, ["train.folder=~/runs"]).train.folder == "/home/me/runs"
    assert apply_overrides(tracker, ["train.folder='~/runs'"]).train.folder == "~/runs"
    assert apply_overrides(tracker, ["train.folder=null"]).train.folder is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.clip.enabled=no", "train.clip.enabled=no: expected true or false"),
        ("train.clip.enabled=1", "train.clip.enabled=1: expected true or false"),
        ("train.clip={enabled:off}", "train.clip.enabled=off: expected true or false"),
        ("train.clip.norm=big", "train.clip.norm=big: expected a number"),
        ("train.seed=true", "train.seed=True: expected a number"),
        ("train.seed=[1]", r"train.seed=\[1\]: expected a number"),
        ("model.classes=3", "model.classes=3: expected a list"),
        ("model.tracker.aligner.d_model=1.5", "model.tracker.aligner.d_model=1.5: expected a whole number"),
        ("model.tracker.aligner.dropout=x", "model.tracker.aligner.dropout=x: expected a number"),
        ("model.tracker.aligner.norm_first=no", "aligner.norm_first=no: expected true or false"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tracker, text, message):
    """By the present value, or by the annotation of the target's parameter."""
    before = resolve(tracker)
    with pytest.raises(UserError, match=message):
        apply_overrides(tracker, [text])
    assert resolve(tracker) == before


def test_a_malformed_value_is_refused_with_advice_on_quoting(tracker):
    with pytest.raises(UserError, match=r"Quote a value with special characters: key='\"value\"'"):
        apply_overrides(tracker, ["train.seed=a=b"])


# --- Variants: a word for a config node ---


VARIANTS = DictConfig(
    {
        "model.tracker.aligner": {
            "plain": L(nn.Sequential)(),
            "wide": L(nn.Linear)(in_features="${train.max_iter}", out_features=1),
        }
    },
    flags={"allow_objects": True},
)


def test_a_variant_replaces_a_node(tracker):
    """Later overrides change the new node and not the table of variants."""
    apply_overrides(tracker, ["model.tracker.aligner=wide", "model.tracker.aligner.out_features=3"], VARIANTS)
    assert set(tracker.model.tracker.aligner) == {"_target_", "in_features", "out_features"}
    layer = own_instantiate(tracker.model.tracker.aligner)
    assert (layer.in_features, layer.out_features) == (10, 3)
    assert VARIANTS["model.tracker.aligner"].wide.out_features == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model.tracker.aligner=wid",
            r"no variant 'wid' of 'model\.tracker\.aligner'\. Did you mean 'wide'\?",
        ),
        ("model.tracker.aligner=zzz", r"The variants are: plain, wide\."),
        ("model.tracker=wide", r"'model\.tracker' is a group of keys without named variants"),
        (
            "model.trackr.aligner=wide",
            r"no key 'model\.trackr\.aligner'\. Did you mean 'model\.tracker\.aligner'",
        ),
    ],
)
def test_an_unknown_variant_is_refused(tracker, text, message):
    before = resolve(tracker)
    with pytest.raises(UserError, match=message):
        apply_overrides(tracker, [text], VARIANTS)
    assert resolve(tracker) == before


def test_values_and_interpolations_are_not_variants(tracker):
    texts = ["model.tracker.aligner=null", "train.clip=${model.decoder}", "train.folder=wide"]
    apply_overrides(tracker, texts, VARIANTS)
    assert tracker.model.tracker.aligner is None
    assert tracker.train.clip.in_features == 4
    assert tracker.train.folder == "wide"


def test_variants_are_read_from_a_folder_above_the_config(files):
    (files / "common" / "variants.py").write_text(
        "from local2global.lazy import OwnLazyCall as L\nfrom torch.nn import ReLU\n"
        "variants = {'model': dict(none=L(ReLU)())}\n"
    )
    assert set(load_config(files / "ovis" / "l2g.py", ["model=none"]).model) == {"_target_"}
    with pytest.raises(UserError, match=r"l2g\.py: no variant 'non' of 'model'\. Did you mean 'none'"):
        load_config(files / "ovis" / "l2g.py", ["model=non"])


# --- Functions for commands ---


def test_a_missing_file_is_reported_with_the_most_similar_name(files):
    with pytest.raises(UserError, match=r"l2gg\.py: no such config\. Did you mean '.*/ovis/l2g\.py'\?"):
        load_config(files / "ovis" / "l2gg.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (\n", r"bad\.py:2: "),
        ("x = 1\nx.y\n", r"bad\.py:2: AttributeError: "),
        ("\nfrom ..common.modle import model\n", r"bad\.py:2: ImportError: .*Did you mean '.*model\.py'"),
        (
            "from ..common.model import *\n",
            r"bad\.py:1: ImportError: star and package imports are not supported",
        ),
        ("from .. import common\n", r"bad\.py:1: ImportError: star and package imports are not supported"),
        (
            "import local2global.configs.demo.l2g_tiny as base\n",
            r"bad\.py:1: ImportError: star and package imports are not supported",
        ),
        (
            "from local2global.configs.demo import l2g_tiny\n",
            r"bad\.py:1: .*configs\.demo is a folder of configs: use `from local2global\.configs\.demo\.FILE import",
        ),
        ("from ..common.model import modle\n", r"bad\.py:1: ImportError: .*no 'modle'.*Did you mean 'model'"),
    ],
)
def test_an_error_in_a_config_is_reported_with_its_line(files, text, message):
    (files / "ovis" / "bad.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(files / "ovis" / "bad.py")


def test_a_resolved_config_is_plain_and_can_be_instantiated(tracker, tmp_path):
    save_resolved(tracker, tmp_path / "config.yaml")
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert plain["model"]["decoder"] == {
        "in_features": 4,
        "out_features": 2,
        "_target_": "torch.nn.modules.linear.Linear",
    }
    assert not (tmp_path / "config.yaml.tmp").exists()
    again = load_resolved(tmp_path / "config.yaml")
    assert isinstance(own_instantiate(again.model.tracker.aligner), nn.TransformerDecoderLayer)
    assert (
        apply_overrides(again, ["model.tracker.aligner.dim_feedforward=16"]).model.tracker.aligner.nhead == 2
    )


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.utils.collect_env.run",
        "torch.nn.modules.module.functools.partial",
        "local2global.lazy.load_config",
        "local2global.lazy.os.system",
        "local2global.engine.optim.nn.Linear.__init__",
        "torch.optimizer.Evil",
        3,
    ],
)
def test_a_yaml_config_builds_only_model_parts_below_model(tmp_path, target):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"part": [{"_target_": target}]}, "train": {}})
    )
    with pytest.raises(
        UserError, match=r"config\.yaml: model\.part\[0\]: a yaml config may not build|no target"
    ):
        load_resolved(tmp_path / "config.yaml")
    assert load_resolved(tmp_path / "config.yaml", only=("train",)) == {"train": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not yaml"),
        ("- 1", "expected a mapping"),
        ("a: ${oc.env:HOME}", "not a resolved value"),
        ("a: !!python/name:os.system ''", "not yaml"),
    ],
)
def test_an_invalid_resolved_config_is_reported_in_one_line(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_resolved(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)


def test_a_value_that_could_not_be_saved_is_refused_where_it_is_needed(tmp_path):
    cfg = L(nn.Linear)(in_features=lambda: 3, out_features=1)
    save_resolved(
        DictConfig({"model": cfg, "train": {"seed": 1}}, flags={"allow_objects": True}), tmp_path / "c.yaml"
    )
    assert load_resolved(tmp_path / "c.yaml", only=("train",)).train.seed == 1
    with pytest.raises(UserError, match=r"model\.in_features: could not be saved"):
        load_resolved(tmp_path / "c.yaml")


def test_an_installed_detectron2_is_used_with_checked_overrides(monkeypatch, tracker):
    """With a fake detectron2."""

    class Theirs:
        @staticmethod
        def apply_overrides(cfg, overrides):
            return cfg

    package, config = type(sys)("detectron2"), type(sys)("detectron2.config")
    package.__spec__ = object()
    config.LazyCall, config.LazyConfig, config.instantiate = object(), Theirs, object()
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.config", config)
    monkeypatch.delenv("L2G_STANDALONE", raising=False)
    call, loader, build = lazy._choose()
    assert call is config.LazyCall
    assert build is config.instantiate
    assert issubclass(loader, Theirs)
    with pytest.raises(UserError, match="no key"):
        loader.apply_overrides(tracker, ["train.sed=1"])
    monkeypatch.setenv("L2G_STANDALONE", "1")
    assert lazy._choose() == (OwnLazyCall, OwnLazyConfig, own_instantiate)


# --- configs/common ---


def test_common_train_has_detrexs_keys():
    train = load_config(CONFIGS / "common" / "train.py").train
    assert set(train) == {
        "output_dir", "init_checkpoint", "init_partial", "max_iter", "amp", "ddp", "clip_grad", "seed", "fast_dev_run",
        "checkpointer", "eval_period", "log_period", "wandb", "model_ema", "accumulate", "device",
        "cache_features",
    }  # fmt: skip
    assert train.clip_grad == {"enabled": True, "params": {"max_norm": 0.01, "norm_type": 2}}
    assert train.device == ("cuda" if torch.cuda.is_available() else "cpu")


class Toy(nn.Module):
    """A model with one parameter of every group."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1), "norm": nn.BatchNorm2d(1)})
        self.norm = nn.LayerNorm(2)
        self.slots = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 2)
        self.tied = self.head
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.level_embed = nn.Parameter(torch.zeros(4, 2))


def test_parameter_groups_follow_the_recipe():
    toy = Toy()
    groups = {(g["lr"], g["weight_decay"]): g["params"] for g in parameter_groups(toy, 1.0, 0.05)}
    expected = {
        (0.1, 0.05): [*toy.backbone["conv"].parameters()],
        (0.1, 0.0): [*toy.backbone["norm"].parameters()],
        (1.0, 0.05): [*toy.head.parameters()],
        (1.0, 0.0): [toy.level_embed, *toy.norm.parameters(), toy.slots.weight],
    }
    assert {key: [*map(id, params)] for key, params in groups.items()} == {
        key: [*map(id, params)] for key, params in expected.items()
    }


def test_parameter_groups_of_a_wrapped_model_are_the_same():
    """DistributedDataParallel holds the model as `module`."""
    toy = Toy()
    wrapper = nn.Module()
    wrapper.module = toy
    assert [len(g["params"]) for g in parameter_groups(wrapper, 1.0, 0.05)] == [
        len(g["params"]) for g in parameter_groups(toy, 1.0, 0.05)
    ]


def test_parameter_groups_require_a_trainable_model():
    with pytest.raises(ValueError, match="no model"):
        parameter_groups(None, 1.0, 0.0)
    with pytest.raises(ValueError, match="trainable"):
        parameter_groups(nn.ReLU(), 1.0, 0.0)


def test_the_common_optimizer_is_built_after_the_trainer_sets_the_model():
    cfg = load_config(CONFIGS / "common" / "optim.py", ["AdamW.lr=1e-3"]).AdamW
    cfg.params.model = Toy()
    optimizer = own_instantiate(cfg)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-4}


def test_schedules_equal_detectron2s(golden):
    """At every iteration, and at the end, where detectron2 calls the schedule once more."""
    expected = json.loads((golden / "lr_schedules.json").read_text())
    multistep, warmed_up = OwnLazyConfig.load(
        str(CONFIGS / "common" / "schedule.py"), ("multistep", "warmed_up")
    )
    plain = multistep(120, [60])
    for name, node in {
        "multistep60_of_120_num_updates": plain,
        "warmup10_linear_0.001_multistep": warmed_up(plain, 10 / 120, start=0.001),
    }.items():
        schedule = own_instantiate(node)
        values = {step: value for step, value in expected[name].items() if step.isdigit()}
        assert {step: schedule(int(step) / 120) for step in values} == pytest.approx(values)
        assert schedule(1.0) == pytest.approx(expected[name]["final_lr"])


def test_every_schedule_is_defined_from_start_to_end():
    cfg = load_config(CONFIGS / "common" / "schedule.py")
    ends = {
        name: tuple(own_instantiate(node)(where) for where in (0.0, 0.49, 1.0)) for name, node in cfg.items()
    }
    assert ends["lr_multiplier_video"] == (1.0, 1.0, 0.1)
    assert ends["lr_multiplier_pretrain"] == (1.0, 1.0, 1.0)
    assert ends["lr_multiplier_short"] == pytest.approx((0.01, 0.5621, 0.01), abs=1e-3)
    assert not any(isinstance(node, ListConfig) for node in cfg.values())
