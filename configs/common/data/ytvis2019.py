"""YouTube-VIS 2019: 40 classes, below `$DETECTRON2_DATASETS/ytvis_2019` (layouts: `data/readers/layouts.py`).

Pseudo-clips of COCO images are mixed in, 1 : 0.75, from `coco/annotations/coco2ytvis2019_train.json`.
Validation truth is not public: `dataloader.evaluator` scores the annotations that the file has, and writes
`results.json` in the challenge's format.  `hold_out` of `common/data/holdout.py` holds out training videos for scores.
"""

from local2global.config.class_lists import VIDEO_CLASSES

from .videos import video_dataloader

CLASSES = VIDEO_CLASSES["ytvis2019"]

dataloader = video_dataloader("ytvis_2019", CLASSES, pseudo_clips="coco2ytvis2019_train.json", share=0.75)
