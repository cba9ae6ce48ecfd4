"""All configs: they load, their models can be built without data, and every parameter gets a gradient."""

from __future__ import annotations

import ast
import copy
import functools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from local2global.app.tables import read_rows
from local2global.config.find import find_config_file
from local2global.engine.loop import train
from local2global.engine.settings import DEFAULTS
from local2global.errors import UserError
from local2global.lazy import LazyConfig, instantiate, load_config, resolve
from local2global.structures import Clip, ClipTargets
from local2global.weights.checkpoint import load_weights
from miniatures import write_images, write_panoptic, write_videos

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.py"))
# configs/detrex needs detrex: tests/test_seam.py has it
CONFIGS = [p for p in CONFIGS if p.parts[0] != "detrex"]
RECIPES = [str(p) for p in CONFIGS if p.parts[0] != "common"]
PAPER = "ytvis2021/l2g_r50.py"
# Its class list is read from the annotation file of `data.annotations`.
CUSTOM = "custom/l2g_r50.py"
# Recipes of public datasets below $DETECTRON2_DATASETS.
PUBLIC = [n for n in RECIPES if n.split("/")[0] not in ("demo", "custom", "detrex")]
# Rows of the paper's tables, their Swin-L variants, and pre-training.
TABLES = [n for n in PUBLIC if n.split("/")[0] != "bench"]
SWIN = [n for n in TABLES if "swinl" in n]


@functools.cache
def _loaded(name: str) -> Any:
    return load_config(ROOT / "configs" / name)


def config(name: str) -> Any:
    """A copy of a config that is loaded once."""
    return copy.deepcopy(_loaded(name))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all public datasets in the layout that the recipes expect."""
    root = tmp_path_factory.mktemp("datasets")
    classes = {
        key: _loaded(f"{key}/l2g_r50.py").model.classes
        for key in ("ytvis2019", "ytvis2021", "ovis", "vipseg")
    }
    coco = _loaded("coco/l2g_r50_60k.py").model.classes
    for year in (2019, 2021):
        names = classes[f"ytvis{year}"]
        write_videos(root / f"ytvis_{year}/train/JPEGImages", root / f"ytvis_{year}/train.json", names)
        write_videos(root / f"ytvis_{year}/valid/JPEGImages", root / f"ytvis_{year}/valid.json", names, False)
        write_images(
            root / "coco/train2017", root / f"coco/annotations/coco2ytvis{year}_train.json", coco, [1, 40]
        )
    names = classes["ytvis2021"]
    write_videos(root / "ytvis_2022/valid/JPEGImages", root / "ytvis_2022/valid.json", names, False)
    write_videos(root / "ovis/train", root / "ovis/annotations/train.json", classes["ovis"])
    write_videos(root / "ovis/valid", root / "ovis/annotations_valid.json", classes["ovis"], False)
    write_images(root / "coco/train2017", root / "coco/annotations/coco2ovis_train.json", coco, [1, 25])
    for split in ("train", "val"):
        file = root / f"coco/annotations/instances_{split}2017.json"
        write_images(root / f"coco/{split}2017", file, coco, [1, 90])
        write_panoptic(root / "VIPSeg/VIPSeg_720P", split, classes["vipseg"])
    return root


def with_datasets_in(root: Path, node: Any) -> Any:
    """Replaces `datasets/` in all paths of a plain config."""
    if isinstance(node, str):
        return node.replace("datasets/", f"{root}/", 1) if node.startswith("datasets/") else node
    items = node.items() if hasattr(node, "items") else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        node[key] = with_datasets_in(root, value)
    return node


@pytest.mark.parametrize("name", PUBLIC)
def test_the_dataset_of_a_recipe_is_read_from_its_public_layout(name, datasets, tmp_path):
    """Loads a training clip, the first test video and the evaluator's truth."""
    plain = with_datasets_in(datasets, resolve(config(name)))
    plain["dataloader"]["train"]["num_workers"] = 0
    plain["dataloader"]["evaluator"]["output_dir"] = str(tmp_path)
    loader = instantiate(plain["dataloader"]["train"])
    assert loader.clips.mixture.classes == plain["model"]["classes"]
    sample = loader.clips[(0, 0)]
    assert sample.errors == ()
    assert len(sample.clip) == plain["dataloader"]["train"]["clip_length"]
    assert sample.clip.targets.labels.max() < len(plain["model"]["classes"])
    (first,) = next(iter(instantiate(plain["dataloader"]["test"])))
    assert min(first.frames[0].shape[1:]) == min(plain["model"]["test_size"])
    instantiate(plain["dataloader"]["evaluator"]).reset()


def test_a_custom_dataset_defines_the_classes_and_holds_out_videos(tmp_path):
    """Only two paths are given on the command line."""
    classes = [{"id": 3, "name": "newt"}, {"id": 8, "name": "toad"}, {"id": 9, "name": "frog"}]
    write_videos(tmp_path / "images", tmp_path / "mine.json", classes, videos=10)
    paths = [f"data.images={tmp_path / 'images'}", f"data.annotations={tmp_path / 'mine.json'}"]
    cfg = load_config(ROOT / "configs" / CUSTOM, [*paths, "dataloader.train.num_workers=0"])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.classes == classes
    assert model.segmenter.class_embed.out_features == 3
    loader, test = instantiate(cfg.dataloader.train), instantiate(cfg.dataloader.test)
    trained = {video.id for video in loader.clips.mixture.datasets[0].videos}
    tested = {video.id for video in test.videos}
    assert (len(trained), len(tested), trained & tested) == (9, 1, set())
    assert resolve(cfg)["model"]["classes"] == classes


# --- Rows of the paper ---

ROWS = {
    (1, "YTVIS-19"): 1,
    (1, "YTVIS-21"): 1,
    (2, "OVIS"): 1,
    (2, "YTVIS-22"): 1,
    (3, "OVIS"): 3,
    (3, "YTVIS-21"): 3,
    (4, "VIPSeg"): 1,
    (5, "OVIS"): 3,
    (6, "OVIS"): 3,
}
POSITIONS = {
    "model.tracker.positions._target_": "local2global.modeling.positions.StaticPositions",
    "model.tracker.positions.num_queries": 100,
    "model.tracker.positions.dim": 256,
}
ABSENT = "absent"
# The keys that a row changes in the full model's config; all other keys are equal.
CHANGES = {
    "table3_baseline": {**POSITIONS, "model.tracker.aligner": None},
    "table3_aligner": POSITIONS,
    "table5_512": {"model.tracker.aligner.dim_feedforward": 512},
    "table5_2048": {"model.tracker.aligner.dim_feedforward": 2048},
    "table6_no_reduced": {
        "model.criterion.supervision._target_": "local2global.modeling.criterion.FullSupervision"
    },
    "table6_dynamic": {
        "model.tracker.local_positions._target_": "local2global.modeling.positions.DynamicLocalPositions",
        "model.tracker.local_positions.num_queries": ABSENT,
        "model.tracker.local_positions.dim": ABSENT,
    },
}
ABLATIONS = [name for name in RECIPES if name.startswith("ablation/table")]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for key, each in value.items()
            for k, v in flat(each, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def test_every_row_of_the_paper_has_one_config():
    """`read_rows` refuses two configs for one row."""
    rows = read_rows(ROOT / "configs")
    assert Counter((row.names[0], row.names[2]) for row in rows) == ROWS
    for row in rows:
        assert row.command.split()[2] == f"configs/{row.config}"


def test_rows_of_the_full_model_share_its_recipe():
    """Four rows on OVIS and two on YouTube-VIS 2021 are the same model, trained once."""
    rows = read_rows(ROOT / "configs")
    served = {
        dataset: [r for r in rows if r.config == f"{dataset}/l2g_r50.py"] for dataset in ("ovis", "ytvis2021")
    }
    assert [r.names[:2] for r in served["ovis"]] == [
        (2, "Local2Global"), (3, "+ trajectory"), (5, "1024"), (6, "static l_pos")
    ]  # fmt: skip
    assert [r.names[:2] for r in served["ytvis2021"]] == [(1, "Local2Global"), (3, "+ trajectory")]
    for results in served.values():
        assert {(r.scores["AP"], r.scores["AP50"], r.scores["AP75"], r.scores["AR1"]) for r in results} == {
            tuple(results[0].scores[name] for name in ("AP", "AP50", "AP75", "AR1"))
        }


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("configs/ablation/table3_trajectory_ytvis2021.py", "ytvis2021"),
        ("ablation/table5_1024_ovis.py", "ovis"),
        ("configs/ablation/table6_static_ovis", "ovis"),
    ],
)
def test_a_merged_ablation_config_names_its_recipe(name, recipe):
    with pytest.raises(UserError, match=f"use configs/{recipe}/l2g_r50.py"):
        find_config_file(name)


def test_every_ablation_is_a_row():
    stems = {Path(name).stem.removesuffix("_ovis").removesuffix("_ytvis2021") for name in ABLATIONS}
    assert stems == set(CHANGES)
    assert len(ABLATIONS) == 8


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_only_the_keys_of_its_row(name):
    stem, _, dataset = Path(name).stem.rpartition("_")
    main, ablation = (flat(resolve(_loaded(n))) for n in (f"{dataset}/l2g_r50.py", name))
    keys = {*main, *ablation}
    changed = {k: ablation.get(k, ABSENT) for k in keys if ablation.get(k, ABSENT) != main.get(k, ABSENT)}
    changed = {
        k: v for k, v in changed.items() if not k.startswith("paper.") and not k.endswith("output_dir")
    }
    expected = dict(CHANGES[stem])
    if stem == "table3_baseline":
        expected |= {k: ABSENT for k in main if k.startswith("model.tracker.aligner.")}
    assert changed == expected
    assert ablation["train.output_dir"] == f"output/{Path(name).stem}"
    statements = ast.parse((ROOT / "configs" / name).read_text()).body[1:]  # without the docstring
    assert 3 <= len(statements) <= 8


def small_clip(classes: int, index: int, length: int = 2) -> Clip:
    """A 64x96 clip of two squares moving on noise; the second square is absent from the first frame."""
    generator = torch.Generator().manual_seed(index)
    frames = torch.randint(0, 255, (length, 3, 64, 96), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(2, length, 64, 96, dtype=torch.bool)
    boxes = torch.zeros(2, length, 4)
    for t in range(length):
        for i in range((t == 0 and 1) or 2):
            x, y = 8 + 40 * i + 4 * t, 12 + 8 * i
            masks[i, t, y : y + 24, x : x + 24] = True
            boxes[i, t] = torch.tensor([(x + 12) / 96, (y + 12) / 64, 24 / 96, 24 / 64])
    labels = torch.tensor([0, classes - 1])
    targets = ClipTargets(labels, torch.arange(2), masks, boxes, masks.flatten(2).any(-1))
    return Clip(frames, (64, 96), index, tuple(range(length)), targets, key=(0, 0, index))


@pytest.mark.parametrize("name", [str(p) for p in CONFIGS])
def test_a_config_loads(name):
    _loaded(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_keys_that_the_trainer_reads(name):
    cfg = config(name)
    assert {"model", "optimizer", "lr_multiplier", "dataloader", "train"} <= set(cfg)
    assert {"train", "test", "evaluator"} <= set(cfg.dataloader)


@pytest.mark.parametrize("name", RECIPES)
def test_a_schedule_is_defined_on_the_closed_interval(name):
    """Trainers evaluate the schedule at progress 1.0 too."""
    schedule = instantiate(config(name).lr_multiplier)
    assert all(0 <= schedule(where) <= 1 for where in (0.0, 0.3, 0.999, 1.0))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != CUSTOM])
def test_the_class_head_matches_the_class_list(name):
    cfg = config(name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.segmenter.class_embed.out_features == len(model.classes) == len(cfg.model.classes)


def test_the_papers_model_has_the_papers_size():
    """Sec. 4.2: 55.2 M parameters, 3.2 M in the aligner with l_pos."""
    with torch.device("meta"):
        model = instantiate(load_config(ROOT / "configs" / PAPER).model)

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert (size(model), size(model.tracker), size(model.segmenter)) == (55_223_404, 3_185_920, 52_037_484)


@pytest.mark.parametrize("name", SWIN)
def test_a_swin_config_differs_from_its_resnet_config_in_the_backbone_only(name):
    swin, resnet = (flat(resolve(_loaded(n))) for n in (name, name.replace("swinl", "r50")))
    changed = {k for k in {*swin, *resnet} if swin.get(k) != resnet.get(k) and not k.startswith("paper.")}
    backbone = {
        k for k in changed if k.startswith(("model.segmenter.backbone.", "model.segmenter.encoder.channels."))
    }
    others = {k for k in changed - backbone if not k.endswith("output_dir")}
    assert others <= {"train.init_checkpoint", "paper_also"}
    assert [swin[f"model.segmenter.encoder.channels.res{i}"] for i in range(2, 6)] == [192, 384, 768, 1536]


def shrunk(cfg: Any) -> Any:
    """The config with the layer widths of the tiny model, which makes a training step fast."""
    model, tiny = cfg.model, config("demo/l2g_tiny.py").model
    model.segmenter.backbone, model.segmenter.encoder = tiny.segmenter.backbone, tiny.segmenter.encoder
    model.segmenter.decoder = tiny.segmenter.decoder
    model.segmenter.update(num_queries=12, dim=64)
    tracker = model.tracker
    if tracker.aligner is not None:
        tracker.aligner.update(dim=64, num_heads=4, num_layers=2)
    for part in (tracker.positions, tracker.local_positions, tracker.first_frame):
        if "dim" in part:
            part.dim = 64
    return cfg


@pytest.mark.parametrize("name", [PAPER, *(name for name in RECIPES if name not in (PAPER, CUSTOM))])
def test_every_trainable_parameter_gets_a_gradient(name):
    """DistributedDataParallel's default depends on it."""
    torch.manual_seed(0)
    cfg = config(name) if name == PAPER else shrunk(config(name))
    cfg.model.criterion.matcher.num_points = cfg.model.criterion.sampler.num_points = 64
    model = instantiate(cfg.model).train()
    clips = [small_clip(len(model.classes), i) for i in range(2)]
    sum(model(clips).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_trains_two_iterations_and_is_scored(name, datasets, tmp_path, monkeypatch):
    """On miniatures of the public data sets, read from $DETECTRON2_DATASETS, with narrow layers and small frames."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    cfg = load_config(
        ROOT / "configs" / name, ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    )
    compile(LazyConfig.to_py(cfg), name, "exec")  # what --dry-run prints
    cfg = shrunk(cfg)
    cfg.model.criterion.matcher.num_points = cfg.model.criterion.sampler.num_points = 64
    train_loader, test_loader = cfg.dataloader.train, cfg.dataloader.test
    train_loader.total_batch_size = 1
    small = dict(side=96) if "side" in train_loader.augment else dict(edges=[64], max_size=96, crop=None)
    for augment in [train_loader.augment, *(train_loader.dataset.get("augments") or [])]:
        if augment is not None:
            augment.update(small)
    test_loader.short_edge, cfg.model.test_size = 64, [64, 1333]
    cfg.train.update(output_dir=str(tmp_path), device="cpu", init_checkpoint="", max_iter=2, log_period=1)
    scores = train(cfg, progress=Console(quiet=True))
    losses = [
        json.loads(line)["total_loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]
    ]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert "speed" in scores
    assert (tmp_path / "model_final.pth").is_file()


def test_pre_training_trains_what_the_paper_says():
    """Sec. 4.2: the aligner, l_pos, the learned queries and the decoder's position MLP; nothing else."""
    model = instantiate(shrunk(config("coco/l2g_r50_60k.py")).model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    parts = (
        "tracker.aligner.",
        "tracker.local_positions.",
        "tracker.first_frame.",
        "segmenter.decoder.ref_point_head.",
    )
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(parts)}
    assert all(any(n.startswith(part) for n in trained) for part in parts)


@pytest.mark.parametrize("video", ["ytvis2021", "ovis", "vipseg"])
def test_video_training_starts_from_pre_training(video):
    """Sec. 4.2: only the learned queries are dropped; the class-head row of "person" is COCO's first row."""
    source = instantiate(shrunk(config("coco/l2g_r50_60k.py")).model).state_dict()
    model = instantiate(shrunk(config(f"{video}/l2g_r50.py")).model)
    report = load_weights(model, {"model": source}, strict=False)
    assert (report.missing, report.mismatched, report.unexpected) == ((), (), ())
    assert dict(report.dropped).keys() == {"tracker.first_frame.embed.weight"}
    loaded, heads = model.state_dict(), {name for name, _ in report.reshaped}
    assert heads == {name for name in loaded if "class_embed" in name or "label_enc" in name}
    assert all(torch.equal(loaded[name], source[name]) for name in loaded.keys() - heads)
    person = [entry["name"].lower() for entry in model.classes].index("person")
    assert all(torch.equal(loaded[name][person], source[name][0]) for name in heads)


def test_every_train_key_of_the_trainer_is_in_the_config():
    assert DEFAULTS.keys() == config(PAPER).train.keys()


def test_an_ablation_is_one_override():
    cfg = load_config(ROOT / "configs" / PAPER, ["model.tracker.aligner.dim_feedforward=512"])
    with torch.device("meta"):
        aligner = instantiate(cfg.model).tracker.aligner
    assert sum(p.numel() for p in aligner.parameters()) == 2_372_352


@pytest.mark.parametrize("word", ["dynamic", "static"])
def test_local_positions_are_selected_by_one_word(word):
    """Table 6: l_pos by confidence rank or from the local boxes."""
    for name in RECIPES:
        cfg = load_config(ROOT / "configs" / name, [f"model.tracker.local_positions={word}"])
        part = instantiate(cfg.model.tracker.local_positions)
        assert type(part).__name__ == f"{word.title()}LocalPositions"
        if word == "static":
            assert part.embed.weight.shape == (cfg.model.segmenter.num_queries, cfg.model.segmenter.dim)
