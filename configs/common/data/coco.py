"""COCO 2017 instances: 80 classes, images as videos of one frame, below `$DETECTRON2_DATASETS/coco`.

Any dataset in COCO's format can be used: `dataloader.train.dataset` and `dataloader.test.dataset` have an image folder
and an annotation file each.  Scores are those of YouTube-VIS on videos of one frame, with ten results per image.
Class list: github.com/facebookresearch/detectron2, detectron2/data/datasets/builtin_meta.py.
"""

import os

from local2global.data.augment import LargeScaleJitter
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.readers.coco import load_coco
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

NAMES = (
    "1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light, "
    "11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 "
    "cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 "
    "suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, "
    "41 skateboard, 42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 "
    "spoon, 51 bowl, 52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, "
    "60 donut, 61 cake, 62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 "
    "laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 "
    "refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush"
)
CLASSES = [dict(id=int(c.split(" ", 1)[0]), name=c.split(" ", 1)[1]) for c in NAMES.split(", ")]
ROOT = os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco")

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(load_coco)(
            images=f"{ROOT}/train2017",
            annotations=f"{ROOT}/annotations/instances_train2017.json",
            classes=CLASSES,
            skip_invalid_annotations=False,
        ),
        clip_length=1,
        augment=L(LargeScaleJitter)(side=1024, low=0.1, high=2.0),
        total_batch_size=16,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(load_coco)(
            images=f"{ROOT}/val2017",
            annotations=f"{ROOT}/annotations/instances_val2017.json",
            classes=CLASSES,
            keep_empty=True,
            skip_invalid_annotations=False,
        ),
        short_edge=800,
        max_size=1333,
        num_workers=2,
    ),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}/inference"
    ),
)
