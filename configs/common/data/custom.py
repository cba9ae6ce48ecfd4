"""Custom videos or images: an image folder and a file in YouTube-VIS's or COCO's format, which has the classes.

    l2g train configs/custom/l2g_r50.py data.images=my/JPEGImages data.annotations=my/instances.json

A tenth of the videos, drawn by `data.seed`, is held out for evaluation.  Invalid annotations are
errors; `data.skip_invalid_annotations=true` skips and counts them.  To evaluate on another file, set
`dataloader.test.dataset={_target_:local2global.data.readers.layouts.load_annotated,images:...,annotations:...}`.
"""

from local2global.data.augment import ClipAugmentation
from local2global.data.holdout import holdout
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.readers.layouts import load_annotated
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

data = dict(
    images="datasets/custom/JPEGImages",
    annotations="datasets/custom/instances.json",
    fraction=0.1,
    seed=0,
    skip_invalid_annotations=False,
)

CLASSES = "${classes_of:${data.annotations}}"
_videos = L(load_annotated)(
    images="${data.images}",
    annotations="${data.annotations}",
    classes=CLASSES,
    skip_invalid_annotations="${data.skip_invalid_annotations}",
)
_part = dict(dataset=_videos, fraction="${data.fraction}", seed="${data.seed}")

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(holdout)(**_part, held=False),
        clip_length=4,
        augment=L(ClipAugmentation)(),
        total_batch_size=8,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(holdout)(**_part, held=True),
        short_edge=360,
        max_size=1333,
        num_workers=2,
    ),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)
