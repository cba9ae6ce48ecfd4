"""COCO's classes, and which class of a video data set each of them is.

Source of the maps: GenVIS, VITA, DVIS, DVIS++ and CTVIS, whose `coco2ytvis2019`, `coco2ytvis2021` and `coco2ovis` are
the same; of the categories: COCO's annotation files.  InstanceFormer's published maps are others, and wrong in places
(airplane to motorcycle), so they are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Ids and names of the 80 things, in the order of a released head's rows; a panoptic head's 53 stuff rows come behind.
THINGS: dict[int, str] = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    5: "airplane",
    6: "bus",
    7: "train",
    8: "truck",
    9: "boat",
    10: "traffic light",
    11: "fire hydrant",
    13: "stop sign",
    14: "parking meter",
    15: "bench",
    16: "bird",
    17: "cat",
    18: "dog",
    19: "horse",
    20: "sheep",
    21: "cow",
    22: "elephant",
    23: "bear",
    24: "zebra",
    25: "giraffe",
    27: "backpack",
    28: "umbrella",
    31: "handbag",
    32: "tie",
    33: "suitcase",
    34: "frisbee",
    35: "skis",
    36: "snowboard",
    37: "sports ball",
    38: "kite",
    39: "baseball bat",
    40: "baseball glove",
    41: "skateboard",
    42: "surfboard",
    43: "tennis racket",
    44: "bottle",
    46: "wine glass",
    47: "cup",
    48: "fork",
    49: "knife",
    50: "spoon",
    51: "bowl",
    52: "banana",
    53: "apple",
    54: "sandwich",
    55: "orange",
    56: "broccoli",
    57: "carrot",
    58: "hot dog",
    59: "pizza",
    60: "donut",
    61: "cake",
    62: "chair",
    63: "couch",
    64: "potted plant",
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    74: "mouse",
    75: "remote",
    76: "keyboard",
    77: "cell phone",
    78: "microwave",
    79: "oven",
    80: "toaster",
    81: "sink",
    82: "refrigerator",
    84: "book",
    85: "clock",
    86: "vase",
    87: "scissors",
    88: "teddy bear",
    89: "hair drier",
    90: "toothbrush",
}

#: Ids and names of the 53 kinds of stuff of COCO's panoptic set, in the order of the rows behind.
STUFF: dict[int, str] = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}

#: Rows of a released class head, with and without stuff.
INSTANCE_ROWS, PANOPTIC_ROWS = 80, 133

#: COCO's ids to those of a data set's own annotation files.
TO_VIDEO: dict[str, dict[int, int]] = {
    "YouTube-VIS 2019": {
        1: 1,
        2: 21,
        3: 6,
        4: 21,
        5: 28,
        7: 17,
        8: 29,
        9: 34,
        17: 14,
        18: 8,
        19: 18,
        21: 15,
        22: 32,
        23: 20,
        24: 30,
        25: 22,
        35: 33,
        36: 33,
        41: 5,
        42: 27,
        43: 40,
    },
    "YouTube-VIS 2021": {
        1: 26,
        2: 23,
        3: 5,
        4: 23,
        5: 1,
        7: 36,
        8: 37,
        9: 4,
        16: 3,
        17: 6,
        18: 9,
        19: 19,
        21: 7,
        22: 12,
        23: 2,
        24: 40,
        25: 18,
        34: 14,
        35: 31,
        36: 31,
        41: 29,
        42: 33,
        43: 34,
    },
    "OVIS": {
        1: 1,
        2: 21,
        3: 25,
        4: 22,
        5: 23,
        6: 25,
        8: 25,
        9: 24,
        17: 3,
        18: 4,
        19: 5,
        20: 6,
        21: 7,
        22: 8,
        23: 9,
        24: 10,
        25: 11,
    },
}

#: A class list is a data set's if these are among its ids and names.
_SIGNS = {
    "YouTube-VIS 2019": {1: "person", 2: "giant_panda", 5: "skateboard"},
    "YouTube-VIS 2021": {1: "airplane", 26: "person", 40: "zebra"},
    "OVIS": {1: "Person", 3: "Cat", 25: "Vehical"},
}
#: Where several classes of COCO are one of a data set's, the one whose weights it takes, if none has its name.
_STANDS_FOR = {"motorbike": "motorcycle", "vehical": "car"}


def head_rows(classes: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """For each class, the row of a COCO class head that knows it.

    By the map of the data set whose class list this is; any other list by name.

    Args:
        classes: {id, name} of every class.

    Returns:
        Rows in [0, 80), None for a class that COCO does not know.
    """
    order = {coco: row for row, coco in enumerate(THINGS)}
    listed = {int(entry["id"]): str(entry["name"]) for entry in classes}
    dataset = next((d for d, sign in _SIGNS.items() if sign.items() <= listed.items()), None)
    rows: list[int | None] = []
    for entry in classes:
        name = _plain(str(entry["name"]))
        if dataset is None:
            found = [coco for coco, theirs in THINGS.items() if _plain(theirs) == name]
        else:
            found = [coco for coco, theirs in TO_VIDEO[dataset].items() if theirs == int(entry["id"])]
        known = [coco for coco in found if _plain(THINGS[coco]) in (name, _STANDS_FOR.get(name))]
        rows.append(order[(known or found)[0]] if found else None)
    return rows


def _plain(name: str) -> str:
    return name.lower().replace("_", " ")
