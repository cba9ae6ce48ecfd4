"""Class heads: which rows of a checkpoint's class head belong to which classes of a model.

Rows are matched by class name.  Heads trained on COCO are matched by the published map of each video dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..config.class_lists import COCO_TO_VIDEO, VIDEO_CLASSES
from ..errors import UserError

Rows = list[int | None]

#: Parameters with one row per class.
CLASS_HEADS = ("segmenter.class_embed.weight", "segmenter.class_embed.bias", "segmenter.label_enc.weight")

_THINGS = (
    "1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic "
    "light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, "
    "20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, "
    "32 tie, 33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 "
    "baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 "
    "fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 "
    "carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed, 67 "
    "dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone, 78 "
    "microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, "
    "88 teddy bear, 89 hair drier, 90 toothbrush"
)
_STUFF = (
    "92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 "
    "floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 "
    "pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 "
    "sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall- "
    "tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other, 184 tree-merged, 185 "
    "fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged, 190 "
    "floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 "
    "paper-merged, 196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other- "
    "merged, 200 rug-merged"
)


def _parse(text: str) -> dict[int, str]:
    entries = (entry.split(" ", 1) for entry in text.split(", "))
    return {int(number): name for number, name in entries}


#: Ids and names of COCO's 80 thing classes, in the order of the rows of a class head.
THINGS = _parse(_THINGS)

#: Ids and names of COCO's 53 stuff classes, whose rows follow the things in a panoptic class head.
STUFF = _parse(_STUFF)

#: Number of rows of a class head trained on COCO, without and with stuff.
INSTANCE_ROWS, PANOPTIC_ROWS = len(THINGS), len(THINGS) + len(STUFF)

#: Where a dataset's class covers several COCO classes and has the name of none, the COCO class to copy.
_PREFERRED = {"motorbike": "motorcycle", "vehical": "car"}


def coco_rows(classes: Sequence[Mapping[str, Any]]) -> Rows:
    """The row of a COCO class head for each class.

    Classes of a public video dataset are matched by its published map, other classes by name.

    Args:
        classes: {id, name} of every class.

    Returns:
        Rows in [0, 80); None for a class that COCO lacks.
    """
    order = {coco: row for row, coco in enumerate(THINGS)}
    listed = {(int(entry["id"]), str(entry["name"])) for entry in classes}
    dataset = next((d for d in COCO_TO_VIDEO if listed <= _members(d)), None)
    rows: Rows = []
    for entry in classes:
        name = _plain(entry["name"])
        if dataset is None:
            candidates = [coco for coco, theirs in THINGS.items() if _plain(theirs) == name]
        else:
            candidates = [c for c, video in COCO_TO_VIDEO[dataset].items() if video == int(entry["id"])]
        preferred = [c for c in candidates if _plain(THINGS[c]) in (name, _PREFERRED.get(name))]
        rows.append(order[(preferred or candidates)[0]] if candidates else None)
    return rows


def match_rows(
    size: int, names: Sequence[str] | None, classes: Sequence[Mapping[str, Any]], coco: bool
) -> tuple[Rows | None, str]:
    """The row of a checkpoint's class head for each class of the model.

    Args:
        size: number of rows of the checkpoint's class head.
        names: class names of the rows; None if they are unknown.
        classes: the model's classes, {id, name} each; empty if it has no class list.
        coco: without `names`, whether a head of 80 or 133 rows was trained on COCO.

    Returns:
        The rows, None for a class that the checkpoint lacks, and how they were matched.  Rows are None as a whole if
        all rows keep their place.
    """
    ours = [_plain(entry["name"]) for entry in classes]
    if not classes:
        return None, ""
    if names is None or len(names) != size:
        if not coco or size not in (INSTANCE_ROWS, PANOPTIC_ROWS):
            return None, ""
        rows = coco_rows(classes)
        same = len(rows) == size and (size == PANOPTIC_ROWS or rows == list(range(size)))
        return (None, "") if same else (rows, "by the COCO map")
    theirs = [_plain(name) for name in names]
    if theirs == ours:
        return None, ""
    if theirs[:INSTANCE_ROWS] == [_plain(name) for name in THINGS.values()]:
        return coco_rows(classes), "by the COCO map"
    return [theirs.index(name) if name in theirs else None for name in ours], "by class name"


def remap_heads(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], rows: Rows, how: str
) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...]]:
    """Reorder the rows of the class heads; rows of new classes keep the model's initial values.

    Args:
        theirs: the checkpoint's tensors by our names.
        ours: the model's tensors, freshly initialised (a new class starts at a score of .01, a bias of -4.595).
        rows: for each class of the model, the checkpoint's row or None.
        how: how the rows were matched.

    Returns:
        The tensors with re-mapped heads, and (name, description) of every re-mapped head.
    """
    state, notes = dict(theirs), []
    known = [k for k, row in enumerate(rows) if row is not None]
    copied = [row for row in rows if row is not None]
    size = len(theirs[CLASS_HEADS[0]])
    for name in CLASS_HEADS:
        if name not in theirs or name not in ours or theirs[name].shape[1:] != ours[name].shape[1:]:
            continue  # a head of another width is reported, not loaded
        if len(ours[name]) == len(rows) and len(theirs[name]) == size:
            value = ours[name].clone()
            value[known] = theirs[name][copied].to(value)
            state[name] = value
            notes.append((name, f"{len(known)} of {len(rows)} rows copied {how}, the rest new"))
    return state, tuple(notes)


def require_all(rows: Rows, classes: Sequence[Mapping[str, Any]]) -> None:
    """Check that the checkpoint has every class of the model.

    Raises:
        UserError: naming the classes it lacks.
    """
    missing = [str(entry["name"]) for entry, row in zip(classes, rows, strict=True) if row is None]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"weights of another class list: {len(missing)} of the model's {len(rows)} classes are not in it "
            f"({', '.join(missing[:3])}{more}). Use the config that they were trained with, or train from them "
            "with train.init_checkpoint."
        )


def _members(dataset: str) -> set[tuple[int, str]]:
    return {(entry["id"], entry["name"]) for entry in VIDEO_CLASSES[dataset]}


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", " ")
