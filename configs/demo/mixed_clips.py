"""The data pipeline of video training at small size: clips from COCO images and real clips, mixed 1 : 0.75 per clip.

    L2G_DATA=path/to/data l2g train configs/demo/mixed_clips.py

Runs on a CPU.  In 300 iterations of two clips the box losses decrease by a fifth; the scores stay near zero.
`L2G_DATA` is a folder that contains `coco_mini/` in COCO format and `clips/` in YouTube-VIS format.
"""

import os

from local2global.data.augment import ClipAugmentation, DriftingCrop, RandomShortestEdge, Turn, ZoomCrop
from local2global.data.loader import Mixture, build_test_loader, build_train_loader
from local2global.data.readers.layouts import load_annotated
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

from ..common.data.coco import CLASSES
from ..common.models.l2g_tiny import model
from ..common.scratch import lr_multiplier, optimizer, train

DATA = os.environ.get("L2G_DATA", "data")


def small(turn=None):
    """The paper's augmentation at a quarter of its size."""
    return L(ClipAugmentation)(
        edges=[80, 96, 112, 128],
        max_size=192,
        crop=L(ZoomCrop)(
            probability=0.5,
            resize=L(RandomShortestEdge)(edges=[100, 125, 150], max_size=333),
            crop=L(DriftingCrop)(low=96, high=150),
        ),
        turn=turn,
    )


_clips = L(load_annotated)(
    images=f"{DATA}/clips/JPEGImages", annotations=f"{DATA}/clips/instances.json", classes=CLASSES
)
_images = L(load_annotated)(
    images=f"{DATA}/coco_mini/train2017",
    annotations=f"{DATA}/coco_mini/instances_train.json",
    classes=CLASSES,
)
dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(Mixture)(
            datasets=[_images, _clips], weights=[1.0, 0.75], augments=[small(L(Turn)()), None]
        ),
        clip_length=3,
        augment=small(),
        total_batch_size=2,
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=_clips, short_edge="${model.test_size.0}", max_size="${model.test_size.1}"
    ),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)

model.classes = CLASSES
model.test_size = [96, 192]
model.segmenter.num_queries = 30
train.update(
    output_dir="output/mixed_clips",
    max_iter=300,
    eval_period=0,
    log_period=10,
    checkpointer=dict(period=1000, max_to_keep=1),
)
