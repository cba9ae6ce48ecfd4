"""YouTube-VIS 2021: 40 classes; under `$DETECTRON2_DATASETS/ytvis_2021` (default `datasets/`), see `data/layouts.py`.

Clips made of COCO images are mixed in, 1 : 0.75, from `coco/annotations/coco2ytvis2021_train.json`.
Validation truth is on the server only: `dataloader.evaluator` scores what the file holds, and writes `results.json` for
the server.  `hold_out` of `common/data/holdout.py` keeps a part of the training set for scores.
Class list: github.com/miranheo/GenVIS, vita/data/datasets/ytvis.py.
"""

import os

from local2global.data.augment import ClipAugmentation, Turn
from local2global.data.coco import load_coco
from local2global.data.layouts import load_split
from local2global.data.loader import Mixture, build_test_loader, build_train_loader
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

NAMES = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog "
    "giant_panda giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake "
    "snowboard squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
CLASSES = [dict(id=i, name=name) for i, name in enumerate(NAMES.split(), start=1)]
DATASETS = os.environ.get("DETECTRON2_DATASETS", "datasets")

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(Mixture)(
            datasets=[
                # ids are mapped in this file, names often are not
                L(load_coco)(
                    images=f"{DATASETS}/coco/train2017",
                    annotations=f"{DATASETS}/coco/annotations/coco2ytvis2021_train.json",
                    classes=CLASSES,
                    check_names=False,
                ),
                L(load_split)(root=f"{DATASETS}/ytvis_2021", split="train", classes=CLASSES),
            ],
            weights=[1.0, 0.75],
            augments=[L(ClipAugmentation)(turn=L(Turn)()), None],
        ),
        clip_length=4,
        augment=L(ClipAugmentation)(),
        total_batch_size=8,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(load_split)(root=f"{DATASETS}/ytvis_2021", split="valid", classes=CLASSES),
        short_edge=360,
        max_size=1333,
        num_workers=2,
    ),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)
