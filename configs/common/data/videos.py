"""Data loaders of YouTube-VIS and OVIS: videos below `$DETECTRON2_DATASETS`, mixed with COCO pseudo-clips.

A dataset in one of their layouts (`data/readers/layouts.py`) is

from .videos import video_dataloader
CLASSES = [dict(id=1, name="newt"), dict(id=2, name="toad")]
dataloader = video_dataloader("pond", CLASSES, pseudo_clips="coco2pond_train.json", share=0.5)

where pseudo-clips and clips of videos are drawn 1 : 0.5.
"""

import os

from local2global.data.augment import ClipAugmentation, Turn
from local2global.data.loader import Mixture, build_test_loader, build_train_loader
from local2global.data.readers.coco import load_coco
from local2global.data.readers.layouts import load_split
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

DATASETS = os.environ.get("DETECTRON2_DATASETS", "datasets")


def video_dataloader(folder, classes, pseudo_clips, share):
    """Four-frame pseudo-clips and clips of `folder`'s training videos, drawn 1 : `share`; its validation videos.

    The evaluator scores against the truth of the validation videos that is on disk, and writes `results.json` in the
    challenge's format.
    """
    root = f"{DATASETS}/{folder}"
    # In this file category ids are mapped to the video dataset, names often are not.
    images = L(load_coco)(
        images=f"{DATASETS}/coco/train2017",
        annotations=f"{DATASETS}/coco/annotations/{pseudo_clips}",
        classes=classes,
        check_names=False,
        skip_invalid_annotations=False,
    )
    return dict(
        train=L(build_train_loader)(
            dataset=L(Mixture)(
                datasets=[
                    images,
                    L(load_split)(root=root, split="train", classes=classes, skip_invalid_annotations=False),
                ],
                weights=[1.0, share],
                augments=[L(ClipAugmentation)(turn=L(Turn)()), None],
            ),
            clip_length=4,
            augment=L(ClipAugmentation)(),
            total_batch_size=8,
            num_workers=4,
            seed="${train.seed}",
        ),
        test=L(build_test_loader)(
            dataset=L(load_split)(root=root, split="valid", classes=classes, skip_invalid_annotations=False),
            short_edge=360,
            max_size=1333,
            num_workers=2,
        ),
        evaluator=L(YTVISEvaluator)(
            truth="${..test.dataset}", classes=classes, output_dir="${train.output_dir}/inference"
        ),
    )
