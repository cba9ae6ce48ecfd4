"""VIPSeg: 124 classes, 58 things and 66 stuff; under `$DETECTRON2_DATASETS/VIPSeg/VIPSeg_720P` (default `datasets/`).

Every segment is a query's: a thing each, and the stuff of one class as one.  The model's labels are things first, so
that things are those below 58; ids are the dataset's, 0 to 123 in the order of `NAMES`.
Class list: github.com/VIPSeg-Dataset/VIPSeg-Dataset, panoVIPSeg_categories.json.
"""

import os

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.readers.layouts import load_vipseg
from local2global.evaluation.vps_evaluator import TruthFiles, VPSEvaluator
from local2global.lazy import LazyCall as L

NAMES = (
    "wall ceiling door stair ladder escalator Playground_slide handrail_or_fence window rail goal pillar pole "
    "floor ground grass sand athletic_field road path crosswalk building house bridge tower windmill "
    "well_or_well_lid other_construction sky mountain stone wood ice snowfield grandstand sea river lake "
    "waterfall water billboard_or_Bulletin_Board sculpture pipeline flag parasol_or_umbrella cushion_or_carpet "
    "tent roadblock car bus truck bicycle motorcycle wheeled_machine ship_or_boat raft airplane tyre "
    "traffic_light lamp person cat dog horse cattle other_animal tree flower other_plant toy ball_net backboard "
    "skateboard bat ball cupboard_or_showcase_or_storage_rack box traveling_case_or_trolley_case basket "
    "bag_or_package trash_can cage plate tub_or_bowl_or_pot bottle_or_cup barrel fishbowl bed pillow "
    "table_or_desk chair_or_seat bench sofa shelf bathtub gun commode roaster other_machine refrigerator "
    "washing_machine Microwave_oven fan curtain textiles clothes painting_or_poster mirror flower_pot_or_vase "
    "clock book tool blackboard tissue screen_or_television computer printer Mobile_phone keyboard "
    "other_electronic_product fruit food instrument train"
)
# fmt: off
THINGS = {
    2, 4, 8, 10, 41, 43, 44, 46, 47, 48, 49, 50, 51, 52, 54, 55, 56, 60, 61, 62, 63, 64, 65, 72, 74, 76,
    77, 78, 79, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 95, 96, 97, 99, 100, 101, 102, 106, 107,
    108, 109, 114, 115, 116, 117, 118, 122, 123,
}
# fmt: on
CLASSES = sorted(
    (dict(id=i, name=name, isthing=int(i in THINGS)) for i, name in enumerate(NAMES.split())),
    key=lambda c: (-c["isthing"], c["id"]),
)
NUM_THINGS = len(THINGS)
ROOT = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "VIPSeg", "VIPSeg_720P")

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_vipseg)(root=ROOT, split="train", classes=CLASSES),
        clip_length=4,
        augment=L(ClipAugmentation)(edges=list(range(480, 801, 32)), max_size=1333),
        total_batch_size=8,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(load_vipseg)(root=ROOT, split="val", classes=CLASSES),
        short_edge=720,
        max_size=1333,
        num_workers=2,
    ),
    evaluator=L(VPSEvaluator)(
        truth=L(TruthFiles)(
            annotations=os.path.join(ROOT, "panoptic_gt_VIPSeg_val.json"),
            maps=os.path.join(ROOT, "panomasksRGB"),
            dataset="${...test.dataset}",
        ),
        classes=CLASSES,
        output_dir="${train.output_dir}/inference",
    ),
)
