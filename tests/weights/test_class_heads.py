"""Class heads are matched by class name; a checkpoint of another class list is re-mapped or refused."""

import pytest
import torch
import yaml
from torch import nn

from local2global.errors import UserError
from local2global.weights.checkpoint import evaluation_state, load_checkpoint, load_weights, save_checkpoint
from local2global.weights.class_heads import CLASS_HEADS, STUFF, THINGS, coco_rows, match_rows, remap_heads

YTVIS21 = [{"id": 1, "name": "airplane"}, {"id": 23, "name": "motorbike"}, {"id": 26, "name": "person"}]
YTVIS21 += [{"id": 40, "name": "zebra"}, {"id": 15, "name": "fox"}, {"id": 31, "name": "snowboard"}]


def named(*names):
    return [{"id": i, "name": name} for i, name in enumerate(names, 1)]


class Heads(nn.Module):
    """The class heads of a segmenter; the bias of row k is k."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.segmenter = nn.ModuleDict(
            {
                "class_embed": nn.Linear(2, len(classes)),
                "label_enc": nn.Embedding(len(classes), 2),
            }
        )
        with torch.no_grad():
            self.bias.copy_(torch.arange(float(len(classes))))

    @property
    def bias(self):
        return self.segmenter["class_embed"].bias


def checkpoint(*names):
    return {"model": Heads(named(*names)).state_dict(), "classes": named(*names)}


# --- COCO ---


def test_class_rows_follow_the_coco_map():
    """COCO's rows: airplane 4, motorcycle 3 (not bicycle 1), person 0, zebra 22, no fox, snowboard 31 (not skis 30)."""
    assert coco_rows(YTVIS21) == [4, 3, 0, 22, None, 31]
    ovis = [{"id": 1, "name": "Person"}, {"id": 3, "name": "Cat"}, {"id": 25, "name": "Vehical"}]
    assert coco_rows(ovis) == [0, 15, 2]
    assert coco_rows([{"id": 7, "name": "Dog"}, {"id": 8, "name": "square"}]) == [16, None]
    assert (len(THINGS), len(STUFF)) == (80, 53)


@pytest.mark.parametrize("rows", [80, 133])
def test_rows_of_new_classes_keep_their_initial_values(rows):
    ours = {
        "segmenter.class_embed.weight": torch.full((6, 2), -9.0),
        "segmenter.class_embed.bias": torch.full((6,), -4.595),
    }
    theirs = {
        "segmenter.class_embed.weight": torch.arange(rows * 2.0).view(rows, 2),
        "segmenter.class_embed.bias": torch.arange(float(rows)),
    }
    matched, how = match_rows(rows, None, YTVIS21, coco=True)
    state, notes = remap_heads(theirs, ours, matched, how)
    assert state["segmenter.class_embed.bias"].tolist() == pytest.approx([4, 3, 0, 22, -4.595, 31])
    assert state["segmenter.class_embed.weight"][:, 0].tolist() == [8, 6, 0, 44, -9, 62]
    assert notes[0] == ("segmenter.class_embed.weight", "5 of 6 rows copied by the COCO map, the rest new")
    coco = [{"id": i, "name": name} for i, name in THINGS.items()]
    assert (match_rows(rows, None, coco, coco=True)[0] is None) == (rows == 80)


def test_pretraining_on_coco_is_matched_by_the_coco_map_even_if_the_sizes_agree():
    """A motorbike takes the row of COCO's motorcycle, which has another name."""
    classes = [*YTVIS21, *({"id": 100 + i, "name": f"new {i}"} for i in range(74))]
    rows, how = match_rows(80, list(THINGS.values()), classes, coco=False)
    assert how == "by the COCO map"
    assert rows[0] == 4
    rows, _ = match_rows(80, list(THINGS.values()), YTVIS21, coco=False)
    assert rows == [4, 3, 0, 22, None, 31]


# --- Class names ---


@pytest.mark.parametrize("strict", [True, False])
def test_the_same_classes_in_another_order_are_reordered_by_name(strict):
    model = Heads(named("Cat", "giant panda", "dog"))
    report = load_weights(model, checkpoint("dog", "cat", "giant_panda"), strict=strict)
    assert model.bias.tolist() == [1, 2, 0]
    assert ("segmenter.class_embed.bias", "3 of 3 rows copied by class name, the rest new") in report.reshaped
    assert len(report.reshaped) == 3


def test_a_model_of_fewer_classes_takes_its_rows():
    model = Heads(named("dog"))
    load_weights(model, checkpoint("cat", "dog"))
    assert model.bias.tolist() == [1]


def test_another_class_list_of_the_same_length_is_refused_by_evaluation():
    model = Heads(named("cat", "bear", "fox"))
    before = model.bias.tolist()
    with pytest.raises(UserError, match=r"^run\.pth: weights of another class list: 2 .* 3 .*\(bear, fox\)"):
        load_weights(model, checkpoint("cat", "dog", "cow"), source="run.pth")
    assert model.bias.tolist() == before


def test_another_class_list_starts_a_training_with_the_shared_classes():
    model = Heads(named("bear", "dog", "fox"))
    with torch.no_grad():
        model.bias.fill_(-4.595)
    report = load_weights(model, checkpoint("cat", "dog", "cow"), strict=False)
    assert model.bias.tolist() == pytest.approx([-4.595, 1, -4.595])
    assert any("1 of 3 rows copied by class name" in line for line in report.summary())


def test_unnamed_classes_are_loaded_in_order_with_a_note():
    model = Heads(named("cat", "dog"))
    report = load_weights(model, checkpoint("fox", "cow")["model"])
    assert model.bias.tolist() == [0, 1]
    assert report.summary()[-1].startswith("the checkpoint does not name its classes")


def test_class_names_are_read_from_the_checkpoint_or_from_the_config_beside_it(tmp_path):
    content = checkpoint("dog", "cat")
    save_checkpoint(tmp_path / "named.pth", content)
    save_checkpoint(tmp_path / "bare.pth", content["model"])
    config = {"model": {"classes": named("cow", "cat")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_checkpoint(tmp_path / "named.pth")["classes"] == named("dog", "cat")
    assert load_checkpoint(tmp_path / "bare.pth")["classes"] == named("cow", "cat")
    (tmp_path / "config.yaml").write_text("model: [")
    assert "classes" not in load_checkpoint(tmp_path / "bare.pth")


# --- Averaged weights ---


AVERAGED = {"enabled": True, "use_ema_weights_for_eval_only": True}


@pytest.mark.parametrize(
    ("ema", "expected"),
    [(AVERAGED, 2.0), ({**AVERAGED, "enabled": False}, 1.0), ({"enabled": True}, 1.0), ({}, 1.0)],
)
def test_one_rule_selects_raw_or_averaged_weights(tmp_path, ema, expected):
    """By the settings of an evaluation, and by the config.yaml beside the checkpoint for prediction."""
    path = str(tmp_path / "model.pth")
    content = {
        "model": {"x": torch.ones(1)},
        "ema_state": {"x": torch.full((1,), 2.0)},
        "classes": named("a"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"model_ema": ema}}))
    for settings in (ema, None):
        state = evaluation_state(content, settings, path)
        assert state["model"]["x"].item() == expected
        assert state["classes"] == named("a")


def test_missing_averaged_weights_are_refused():
    with pytest.raises(UserError, match=r"a\.pth: no averaged weights"):
        evaluation_state({"model": {}}, AVERAGED, "a.pth")


def test_a_head_of_another_width_is_left_to_the_report():
    """It ended in an error of torch."""
    name = CLASS_HEADS[0]
    theirs, ours = {name: torch.zeros(2, 4)}, {name: torch.ones(3, 8)}
    assert remap_heads(theirs, ours, [None, 0, 1], "by class name") == (theirs, ())
