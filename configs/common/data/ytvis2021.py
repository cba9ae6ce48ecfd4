"""YouTube-VIS 2021: 40 classes, below `$DETECTRON2_DATASETS/ytvis_2021` (layouts: `data/readers/layouts.py`).

Pseudo-clips of COCO images are mixed in, 1 : 0.75, from `coco/annotations/coco2ytvis2021_train.json`.
Validation truth is not public: `dataloader.evaluator` scores the annotations that the file has, and writes
`results.json` in the challenge's format.  `hold_out` of `common/data/holdout.py` holds out training videos for scores.
"""

from local2global.config.class_lists import VIDEO_CLASSES

from .videos import video_dataloader

CLASSES = VIDEO_CLASSES["ytvis2021"]

dataloader = video_dataloader("ytvis_2021", CLASSES, pseudo_clips="coco2ytvis2021_train.json", share=0.75)
