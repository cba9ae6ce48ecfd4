"""VIPSeg: 124 classes, 58 things and 66 stuff, below `$DETECTRON2_DATASETS/VIPSeg/VIPSeg_720P` (default `datasets/`).

Every thing and the stuff of every class is one query.  The model's labels are things first, so labels below 58 are
things; category ids are the dataset's, 0 to 123.
"""

import os

from local2global.config.class_lists import VIPSEG_CLASSES
from local2global.data.augment import ClipAugmentation
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.readers.layouts import load_vipseg
from local2global.evaluation.vps_evaluator import TruthFiles, VPSEvaluator
from local2global.lazy import LazyCall as L

CLASSES = sorted(VIPSEG_CLASSES, key=lambda c: (-c["isthing"], c["id"]))
NUM_THINGS = sum(c["isthing"] for c in CLASSES)
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
