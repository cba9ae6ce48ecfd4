"""The segmenter for `coco_pretrain.py`: trained from scratch on 60 COCO images and scored on the same images.

    L2G_DATA=path/to/data l2g train configs/demo/coco_segmenter.py

About 10 minutes on one CPU core, AP 92, AP50 100.  `L2G_DATA` is a folder that contains `coco_mini/` in COCO format.
Images are used if they have at most three objects, each at least 1/50 of the image: 60 images with 119 objects, all of
class "object", at 96 pixels.  There is no aligner; the slots start at the local queries.
"""

import os

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.small_sets import large_objects
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L
from local2global.modeling.variants import FromProposals

from ..common.models.l2g_small import model
from ..common.scratch import lr_multiplier, optimizer, train

CLASSES = [dict(id=1, name="object")]

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
        short_edge="${model.test_size.0}",
        max_size="${model.test_size.1}",
    ),
    evaluator=L(YTVISEvaluator)(truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}"),
)

train.update(
    output_dir="output/coco_segmenter",
    max_iter=2400,
    eval_period=600,
    log_period=50,
    checkpointer=dict(period=600, max_to_keep=2),
)
