"""Video training's data at small size on a CPU: clips made of COCO images, and real clips, mixed 1 : 0.75 clip by clip.

    L2G_DATA=path/to/data l2g train configs/demo/mixed_clips.py

`L2G_DATA` is a folder with `coco_mini/` (COCO's format) and `clips/` (YouTube-VIS's).  It shows that the mix feeds a
model: in 300 iterations of two clips the box losses fall by a fifth, the class loss of 80 classes does not, and
nothing worth scoring is learned.
"""

import os

from local2global.data.augment import ClipAugmentation, DriftingCrop, RandomShortestEdge, Turn, ZoomCrop
from local2global.data.loader import Mixture, build_test_loader, build_train_loader
from local2global.data.readers.layouts import load_annotated
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

from ..common.data.coco import CLASSES
from ..common.models.l2g_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from ..common.train import train

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
dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(Mixture)(
            datasets=[
                L(load_annotated)(
                    images=f"{DATA}/coco_mini/train2017",
                    annotations=f"{DATA}/coco_mini/instances_train.json",
                    classes=CLASSES,
                ),
                _clips,
            ],
            weights=[1.0, 0.75],
            augments=[small(L(Turn)()), None],
        ),
        clip_length=3,
        augment=small(),
        total_batch_size=2,
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(dataset=_clips, short_edge=96, max_size=192),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)

model.classes = CLASSES
model.test_size = [96, 192]
model.segmenter.num_queries = 30
optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.update(
    output_dir="output/mixed_clips",
    max_iter=300,
    eval_period=0,
    log_period=10,
    checkpointer=dict(period=1000, max_to_keep=1),
)
train.clip_grad.params.max_norm = 1.0
