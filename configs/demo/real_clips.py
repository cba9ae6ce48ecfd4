"""Real pixels: a small model fitted from scratch to twenty short clips on a CPU, scored on the clips it saw.

    L2G_DATA=path/to/data l2g train configs/demo/real_clips.py

    ... 'dataloader.test.dataset.clips=[bear,car-turn,dogs-jump]' 'dataloader.test.dataset.composites=[]'
        'dataloader.train.starts=[0,300]' train.max_iter=1200                    three only, seed 0: AP50 100

`L2G_DATA` is a folder with `clips/` and `composites/`, each a YouTube-VIS `JPEGImages/` and `instances.json`.  A fit
test, about 45 minutes on two cores (three clips: 10): it shows that data, model, losses, propagation and scores agree
on real frames, and nothing about other videos, so that frames are only mirrored.

Single frames teach a model what to find, not how to carry it: streamed, the slots of one that has seen no clips become
alike within six frames, and of two dogs one is lost.  Three videos are found sooner than twenty, so clips start sooner.
"""

import os
from pathlib import Path

from local2global.data.augment import ClipAugmentation
from local2global.data.datasets import load_youtube_vis, merge
from local2global.data.loader import Curriculum, build_test_loader, build_train_loader
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

from ..common.models.l2g_small import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from ..common.train import train

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


def real_clips(root, classes, clips=None, composites=None):
    """Videos below `root` as one dataset: those of the given names, all of a folder for None, none of it for [].

    Of all clips kitti-0001 is left out: two frames, and its cars are tiny.
    """
    wanted = [("clips", clips, ["kitti-0001"]), ("composites", composites, [])]
    return merge(
        *(
            load_youtube_vis(
                Path(root, folder, "JPEGImages"),
                Path(root, folder, "instances.json"),
                classes,
                videos=names,
                exclude=[] if names else left_out,
            )
            for folder, names, left_out in wanted
            if names is None or len(names)
        )
    )


model.classes = CLASSES
model.test_size = [160, 320]

_videos = L(real_clips)(root=os.environ.get("L2G_DATA", "data"), classes=CLASSES)
_augment = L(ClipAugmentation)(edges=[160], max_size=320, crop=None)
dataloader = dict(
    train=L(Curriculum)(
        loaders=[
            L(build_train_loader)(
                dataset="${dataloader.test.dataset}",
                clip_length=1,
                augment=_augment,
                total_batch_size=6,
                num_workers=1,
                seed="${train.seed}",
            ),
            L(build_train_loader)(
                dataset="${dataloader.test.dataset}",
                clip_length=3,
                augment=_augment,
                total_batch_size=2,
                num_workers=1,
                seed="${train.seed}",
            ),
        ],
        starts=[0, 1500],
    ),
    test=L(build_test_loader)(dataset=_videos, short_edge=160, max_size=320),
    evaluator=L(YTVISEvaluator)(truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}"),
)

optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.update(
    output_dir="output/real_clips",
    max_iter=2400,
    eval_period=800,
    log_period=50,
    checkpointer=dict(period=300, max_to_keep=3),
)
train.clip_grad.params.max_norm = 1.0
