"""OVIS: 25 classes, below `$DETECTRON2_DATASETS/ovis` (default `datasets/`), layouts in `data/readers/layouts.py`.

Pseudo-clips of COCO images are mixed in, 1 : 0.25, from `coco/annotations/coco2ovis_train.json`.
`dataloader.evaluator` scores the annotations that the validation file has, and writes `results.json` in the server's
format.  `hold_out` of `common/data/holdout.py` holds out training videos for scores.
"""

from local2global.config.class_lists import VIDEO_CLASSES

from .videos import video_dataloader

CLASSES = VIDEO_CLASSES["ovis"]

dataloader = video_dataloader("ovis", CLASSES, pseudo_clips="coco2ovis_train.json", share=0.25)
