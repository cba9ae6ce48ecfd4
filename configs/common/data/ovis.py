"""OVIS: 25 classes, below `$DETECTRON2_DATASETS/ovis` (default `datasets/`), layouts in `data/readers/layouts.py`.

Pseudo-clips of COCO images are mixed in, 1 : 0.25, from `coco/annotations/coco2ovis_train.json`.
`dataloader.evaluator` scores against the public truth of the validation videos, `validGT.json`, if it is there, and
writes `results.json` in the challenge's format.
"""

from local2global.config.class_lists import VIDEO_CLASSES

from .videos import video_dataloader

CLASSES = VIDEO_CLASSES["ovis"]

dataloader = video_dataloader("ovis", CLASSES, pseudo_clips="coco2ovis_train.json", share=0.25)
