"""Real frames: a small model is fitted to twenty short clips from scratch and scored on the same clips.

    L2G_DATA=path/to/data l2g train configs/demo/real_clips.py

About 45 minutes on two CPU cores; `three_clips.py` takes three of the clips.  `L2G_DATA` is a folder that contains
`clips/` and `composites/`, each with a YouTube-VIS `JPEGImages/` and `instances.json`.  This overfitting test checks
data, model, losses, propagation and scores on real frames.  It does not measure generalisation, so frames are only
flipped.
"""

import os

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import Curriculum, build_test_loader, build_train_loader
from local2global.data.small_sets import real_clips
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L
from local2global.modeling.variants import IdentityStartAligner

from ..common.models.l2g_small import model
from ..common.scratch import lr_multiplier, optimizer, train

CLASSES = [
    dict(id=1, name="person"),
    dict(id=2, name="bicycle"),
    dict(id=3, name="car"),
    dict(id=7, name="train"),
    dict(id=16, name="bird"),
    dict(id=18, name="dog"),
    dict(id=21, name="cow"),
    dict(id=23, name="bear"),
    dict(id=37, name="sports ball"),
]


def _loader(clip_length, total_batch_size):
    return L(build_train_loader)(
        dataset="${dataloader.test.dataset}",
        clip_length=clip_length,
        augment=L(ClipAugmentation)(
            edges=["${model.test_size.0}"], max_size="${model.test_size.1}", crop=None
        ),
        total_batch_size=total_batch_size,
        num_workers=1,
        seed="${train.seed}",
    )


model.classes = CLASSES
model.test_size = [160, 320]
model.tracker.aligner._target_ = IdentityStartAligner

dataloader = dict(
    train=L(Curriculum)(loaders=[_loader(1, 6), _loader(3, 2)], starts=[0, 1500]),
    test=L(build_test_loader)(
        dataset=L(real_clips)(root=os.environ.get("L2G_DATA", "data"), classes=CLASSES),
        short_edge="${model.test_size.0}",
        max_size="${model.test_size.1}",
    ),
    evaluator=L(YTVISEvaluator)(truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}"),
)

train.update(
    output_dir="output/real_clips",
    max_iter=2400,
    eval_period=800,
    log_period=50,
    checkpointer=dict(period=300, max_to_keep=3),
)
