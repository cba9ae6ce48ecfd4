"""Before pre-training, at small size: a segmenter fitted from scratch to COCO images on a CPU, scored on what it saw.

    L2G_DATA=path/to/data l2g train configs/demo/coco_segmenter.py

`L2G_DATA` is a folder with `coco_mini/`, in COCO's format.  Of its images it takes those of at most three objects, each
at least a fiftieth of the image: 60, with 119 objects, all called "object".  It learns them by heart at 96 pixels in
about 10 minutes of one core: AP 92, AP50 100.  There is no aligner and no slot of its own yet, only the local queries.
"""

import os
from itertools import accumulate
from pathlib import Path

from local2global.data.augment import ClipAugmentation
from local2global.data.datasets import Renumbered, VideoDataset
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.readers.coco import load_coco
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import FromProposals

from ..common.models.l2g_small import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from ..common.train import train

CLASSES = [dict(id=1, name="object")]


def large_objects(root, classes, most, least):
    """The images below `root` of at most so many objects, each at least so much of its image, all of one class."""
    parts = [
        load_coco(Path(root, f"{split}2017"), Path(root, f"instances_{split}.json"))
        for split in ("train", "val")
    ]
    images = [
        (image, part)
        for part in parts
        for image in part.videos
        if len(image.labels) <= most and image.masks(0).flatten(1).float().mean(1).min() >= least
    ]
    firsts = accumulate((len(image.labels) for image, _ in images), initial=1)
    records = [
        Renumbered(image, number, first, positions=(0,) * len(part.classes))
        for number, ((image, part), first) in enumerate(zip(images, firsts, strict=False), start=1)
    ]
    return VideoDataset(records, classes)


model.classes = CLASSES
model.test_size = [96, 128]
model.criterion.matcher.num_points = 512
model.criterion.sampler.num_points = 512
model.tracker.aligner = None
model.tracker.first_frame = L(FromProposals)()

dataloader = dict(
    train=L(build_train_loader)(
        dataset="${dataloader.test.dataset}",
        clip_length=1,
        augment=L(ClipAugmentation)(edges=[96], max_size=128, crop=None, flip=0.0),
        total_batch_size=6,
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(large_objects)(
            root=os.path.join(os.environ.get("L2G_DATA", "data"), "coco_mini"),
            classes=CLASSES,
            most=3,
            least=0.02,
        ),
        short_edge=96,
        max_size=128,
    ),
    evaluator=L(YTVISEvaluator)(truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}"),
)

optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.update(
    output_dir="output/coco_segmenter",
    max_iter=2400,
    eval_period=600,
    log_period=50,
    checkpointer=dict(period=600, max_to_keep=2),
)
train.clip_grad.params.max_norm = 1.0
