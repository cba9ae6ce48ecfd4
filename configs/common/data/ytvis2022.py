"""YouTube-VIS 2022: trained on 2021's videos and classes, evaluated on `$DETECTRON2_DATASETS/ytvis_2022/valid`.

Truth: `gt.json`, `gt_short.json` and `gt_long.json` beside `valid.json`.  Published numbers are either the mean of the
scores on its short videos (2021's) and its 71 long videos, or the score on the long videos.
"""

from .videos import DATASETS
from .ytvis2021 import CLASSES, dataloader

dataloader.test.dataset.root = f"{DATASETS}/ytvis_2022"
