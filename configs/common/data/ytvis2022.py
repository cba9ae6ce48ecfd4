"""YouTube-VIS 2022: trained on 2021's videos and classes, scored on `$DETECTRON2_DATASETS/ytvis_2022/valid`.

Some report the mean of the scores on its short videos (2021's) and its 71 long ones, others one score on all; the
server gives both.
"""

from .videos import DATASETS
from .ytvis2021 import CLASSES, dataloader

dataloader.test.dataset.root = f"{DATASETS}/ytvis_2022"
