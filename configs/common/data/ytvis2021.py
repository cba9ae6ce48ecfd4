"""YouTube-VIS 2021: 40 classes; under `$DETECTRON2_DATASETS/ytvis_2021` (default `datasets/`), see `data/layouts.py`.

Clips made of COCO images are mixed in, 1 : 0.75, from `coco/annotations/coco2ytvis2021_train.json`.
Validation truth is on the server only: `dataloader.evaluator` scores what the file holds, and writes `results.json` for
the server.  `hold_out` of `common/data/holdout.py` keeps a part of the training set for scores.
Class list: github.com/miranheo/GenVIS, vita/data/datasets/ytvis.py.
"""

from .videos import numbered, video_dataloader

NAMES = (
    "airplane bear bird boat car cat cow deer dog duck earless_seal elephant fish flying_disc fox frog "
    "giant_panda giraffe horse leopard lizard monkey motorbike mouse parrot person rabbit shark skateboard snake "
    "snowboard squirrel surfboard tennis_racket tiger train truck turtle whale zebra"
)
CLASSES = numbered(NAMES)

dataloader = video_dataloader("ytvis_2021", CLASSES, pseudo_clips="coco2ytvis2021_train.json", share=0.75)
