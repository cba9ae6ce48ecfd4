"""YouTube-VIS 2019: 40 classes; under `$DETECTRON2_DATASETS/ytvis_2019` (default `datasets/`), see `data/layouts.py`.

Clips made of COCO images are mixed in, 1 : 0.75, from `coco/annotations/coco2ytvis2019_train.json`.
Validation truth is on the server only: `dataloader.evaluator` scores what the file holds, and writes `results.json` for
the server.  `hold_out` of `common/data/holdout.py` keeps a part of the training set for scores.
Class list: github.com/miranheo/GenVIS, vita/data/datasets/ytvis.py.
"""

from .videos import numbered, video_dataloader

NAMES = (
    "person giant_panda lizard parrot skateboard sedan ape dog snake monkey hand rabbit duck cat cow fish train "
    "horse turtle bear motorbike giraffe leopard fox deer owl surfboard airplane truck zebra tiger elephant "
    "snowboard boat shark mouse frog eagle earless_seal tennis_racket"
)
CLASSES = numbered(NAMES)

dataloader = video_dataloader("ytvis_2019", CLASSES, pseudo_clips="coco2ytvis2019_train.json", share=0.75)
