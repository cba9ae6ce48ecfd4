"""YouTube-VIS 2021: 40 classes; under `$DETECTRON2_DATASETS/ytvis_2021` (default `datasets/`).

Validation truth is on the server only: `dataloader.evaluator` scores what `valid.json` holds, and writes
`results.json` for the server.
"""

import os

from local2global.data.augment import ClipAugmentation
from local2global.data.datasets import load_youtube_vis
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

NAMES = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog giant_panda "
    "giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake snowboard "
    "squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
CLASSES = [dict(id=i, name=name) for i, name in enumerate(NAMES.split(), start=1)]
ROOT = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "ytvis_2021")

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_youtube_vis)(
            images=f"{ROOT}/train/JPEGImages", annotations=f"{ROOT}/train.json", classes=CLASSES
        ),
        clip_length=4,
        augment=L(ClipAugmentation)(),
        total_batch_size=8,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(load_youtube_vis)(
            images=f"{ROOT}/valid/JPEGImages", annotations=f"{ROOT}/valid.json", classes=CLASSES
        ),
        short_edge=360,
        max_size=1333,
        num_workers=2,
    ),
    evaluator=L(YTVISEvaluator)(
        truth=f"{ROOT}/valid.json", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)
