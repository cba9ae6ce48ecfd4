"""What YouTube-VIS and OVIS share: videos below `$DETECTRON2_DATASETS`, and clips made of COCO images among them.

from .videos import numbered, video_dataloader
CLASSES = numbered("newt toad")
dataloader = video_dataloader("pond", CLASSES, pseudo_clips="coco2pond_train.json", share=0.5)

is a dataset of that layout (`data/layouts.py`): of 1 + 0.5 clips, 1 is made of an image of `pseudo_clips`.
"""

import os

from local2global.data.augment import ClipAugmentation, Turn
from local2global.data.loader import Mixture, build_test_loader, build_train_loader
from local2global.data.readers.coco import load_coco
from local2global.data.readers.layouts import load_split
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

DATASETS = os.environ.get("DETECTRON2_DATASETS", "datasets")


def numbered(names):
    """A class list whose ids count from 1, in the order of the names."""
    return [dict(id=i, name=name) for i, name in enumerate(names.split(), start=1)]


def video_dataloader(folder, classes, pseudo_clips, share):
    """Four-frame clips of images and of `folder`'s training videos, 1 : `share`; its validation videos for scores.

    Validation truth is on a server only: the evaluator scores what the file holds, and writes `results.json` for it.
    """
    root = f"{DATASETS}/{folder}"
    # ids are mapped in this file, names often are not
    images = L(load_coco)(
        images=f"{DATASETS}/coco/train2017",
        annotations=f"{DATASETS}/coco/annotations/{pseudo_clips}",
        classes=classes,
        check_names=False,
    )
    return dict(
        train=L(build_train_loader)(
            dataset=L(Mixture)(
                datasets=[images, L(load_split)(root=root, split="train", classes=classes)],
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
            dataset=L(load_split)(root=root, split="valid", classes=classes),
            short_edge=360,
            max_size=1333,
            num_workers=2,
        ),
        evaluator=L(YTVISEvaluator)(
            truth="${..test.dataset}", classes=classes, output_dir="${train.output_dir}/inference"
        ),
    )
