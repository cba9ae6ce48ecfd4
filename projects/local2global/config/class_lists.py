"""Class lists of the public datasets, and mappings from COCO's categories to them.

Names and ids are those of the datasets' files and of the public code of GenVIS, VITA and DVIS; VIPSeg's are those of
its `panoVIPSeg_categories.json`.
"""

from __future__ import annotations

from typing import Any

_YTVIS_2019 = (
    "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish "
    "train horse turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger "
    "elephant snowboard boat shark mouse frog eagle earless_seal tennis_racket"
)
"""Ids from 1."""

_YTVIS_2021 = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog "
    "giant_panda giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard "
    "snake snowboard squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
"""Ids from 1; also the classes of 2022."""

_OVIS = (
    "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda Lizard Parrot Monkey "
    "Rabbit Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
)
"""Ids from 1; "Vehical" is the dataset's spelling."""

_VIPSEG = (
    "wall ceiling door stair ladder escalator Playground_slide handrail_or_fence window rail goal pillar pole "
    "floor ground grass sand athletic_field road path crosswalk building house bridge tower windmill "
    "well_or_well_lid other_construction sky mountain stone wood ice snowfield grandstand sea river lake "
    "waterfall water billboard_or_Bulletin_Board sculpture pipeline flag parasol_or_umbrella "
    "cushion_or_carpet tent roadblock car bus truck bicycle motorcycle wheeled_machine ship_or_boat raft "
    "airplane tyre traffic_light lamp person cat dog horse cattle other_animal tree flower other_plant toy "
    "ball_net backboard skateboard bat ball cupboard_or_showcase_or_storage_rack box "
    "traveling_case_or_trolley_case basket bag_or_package trash_can cage plate tub_or_bowl_or_pot "
    "bottle_or_cup barrel fishbowl bed pillow table_or_desk chair_or_seat bench sofa shelf bathtub gun "
    "commode roaster other_machine refrigerator washing_machine Microwave_oven fan curtain textiles clothes "
    "painting_or_poster mirror flower_pot_or_vase clock book tool blackboard tissue screen_or_television "
    "computer printer Mobile_phone keyboard other_electronic_product fruit food instrument train"
)
"""Ids from 0."""

_VIPSEG_THINGS = (
    "2 4 8 10 41 43 44 46 47 48 49 50 51 52 54 55 56 60 61 62 63 64 65 72 74 76 77 78 79 82 83 84 85 "
    "86 87 88 89 90 91 92 95 96 97 99 100 101 102 106 107 108 109 114 115 116 117 118 122 123"
)
"""Ids of the thing classes."""


def _numbered(names: str) -> list[dict[str, Any]]:
    return [{"id": k, "name": name} for k, name in enumerate(names.split(), 1)]


VIDEO_CLASSES: dict[str, list[dict[str, Any]]] = {
    "ytvis2019": _numbered(_YTVIS_2019),
    "ytvis2021": _numbered(_YTVIS_2021),
    "ovis": _numbered(_OVIS),
}
"""{id, name} of every class of a dataset, by id."""

VIPSEG_CLASSES: list[dict[str, Any]] = [
    {"id": k, "name": name, "isthing": int(str(k) in _VIPSEG_THINGS.split())}
    for k, name in enumerate(_VIPSEG.split())
]
"""{id, name, isthing} by id; raw VIPSeg masks contain id + 1."""

_COCO_TO_VIDEO = {
    "ytvis2019": (
        "1:1 2:21 3:6 4:21 5:28 7:17 8:29 9:34 17:14 18:8 19:18 21:15 22:32 23:20 24:30 25:22 35:33 "
        "36:33 41:5 42:27 43:40"
    ),
    "ytvis2021": (
        "1:26 2:23 3:5 4:23 5:1 7:36 8:37 9:4 16:3 17:6 18:9 19:19 21:7 22:12 23:2 24:40 25:18 34:14 "
        "35:31 36:31 41:29 42:33 43:34"
    ),
    "ovis": ("1:1 2:21 3:25 4:22 5:23 6:25 8:25 9:24 17:3 18:4 19:5 20:6 21:7 22:8 23:9 24:10 25:11"),
}

COCO_TO_VIDEO: dict[str, dict[int, int]] = {
    name: {int(coco): int(video) for coco, video in (pair.split(":") for pair in pairs.split())}
    for name, pairs in _COCO_TO_VIDEO.items()
}
"""The video dataset's category id of each COCO category that it has.

The mappings on which VITA, GenVIS, GRAtt-VIS, DVIS, DVIS++, CAVIS and CTVIS agree.
"""
