"""OVIS: 25 classes, "Vehical" as the dataset spells it; under `$DETECTRON2_DATASETS/ovis`, see `data/layouts.py`.

Clips made of COCO images are mixed in, 1 : 0.25, from `coco/annotations/coco2ovis_train.json`.
Validation truth is on the server only: `dataloader.evaluator` scores what the file holds, and writes `results.json` for
the server.  `hold_out` of `common/data/holdout.py` keeps a part of the training set for scores.
Class list: github.com/miranheo/GenVIS, vita/data/datasets/ovis.py.
"""

from .videos import numbered, video_dataloader

NAMES = (
    "Person Bird Cat Dog Horse Sheep Cow Elephant Bear Zebra Giraffe Poultry Giant_panda Lizard Parrot Monkey "
    "Rabbit Tiger Fish Turtle Bicycle Motorcycle Airplane Boat Vehical"
)
CLASSES = numbered(NAMES)

dataloader = video_dataloader("ovis", CLASSES, pseudo_clips="coco2ovis_train.json", share=0.25)
