"""Identity on real pixels, leave-some-out, stage 2 of 2: the method on clips of two thirds.

    L2G_DATA=path/to/data L2G_SPLIT=0 l2g train configs/demo/real_splits_frames.py
    L2G_DATA=path/to/data L2G_SPLIT=0 l2g train configs/demo/real_splits.py
    L2G_DATA=path/to/data L2G_SPLIT=0 l2g identity configs/demo/real_splits.py \
        --weights output/real_splits_0_frames output/real_splits_0

`L2G_SPLIT` is 0, 1 or 2.  Every clip is held out once.  A composite is used on the side on which all clips lie whose
pixels it shows; all objects are of the class "object".  `docs/identity.md` has the scores.
"""

import os

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import build_test_loader, build_train_loader
from local2global.data.scene_cuts import SceneCuts
from local2global.data.small_sets import one_class, real_clips
from local2global.errors import UserError
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Tracker
from local2global.modeling.variants import HiddenMasksCriterion, IdentityStartAligner

from ..common.models.l2g_tiny import model
from ..common.scratch import lr_multiplier, optimizer, train
from .real_clips import CLASSES as _NAMED

DATA = os.environ.get("L2G_DATA", "data")
SPLIT = os.environ.get("L2G_SPLIT", "0")
if SPLIT not in ("0", "1", "2"):
    raise UserError(f"L2G_SPLIT={SPLIT}: expected 0, 1 or 2")
OUTPUT = f"output/real_splits_{SPLIT}"
CLASSES = [dict(id=1, name="object")]

HELD_OUT = [
    ["bear", "car-shadow", "car-turn", "lucia", "mallard-fly"],
    ["blackswan", "bmx-trees", "cows", "dogs-jump"],
    ["libby", "rollerblade", "soccerball", "train"],
]
TRAINED = [clip for number, clips in enumerate(HELD_OUT) if str(number) != SPLIT for clip in clips]
# Composites and the clips whose pixels they show.
_COMPOSITES = {
    "comp-dev-00-bear": {"bear", "lucia", "car-shadow"},
    "comp-dev-01-car-turn": {"car-turn", "lucia", "car-shadow", "bear"},
    "comp-dev-02-lucia": {"lucia", "mallard-fly", "car-turn", "bear"},
    "comp-dev-03-mallard-fly": {"mallard-fly", "car-turn"},
    "comp-dev-04-rollerblade": {"rollerblade", "lucia", "car-turn"},
    "comp-dev-05-train": {"train", "lucia", "mallard-fly", "car-shadow", "car-turn"},
}


def _videos(clips):
    composites = [name for name, shown in _COMPOSITES.items() if shown <= set(clips)]
    named = L(real_clips)(root=DATA, classes=_NAMED, clips=clips, composites=composites)
    return L(one_class)(dataset=named, classes=CLASSES)


model.classes = CLASSES
model.test_size = [128, 256]
model.tracker._target_ = Tracker
model.tracker.aligner._target_ = IdentityStartAligner
model.trainable = [r"^(?!segmenter\.(backbone|encoder)\.)"]
model.criterion._target_ = HiddenMasksCriterion

dataloader = dict(
    train=L(build_train_loader)(
        dataset=_videos(TRAINED),
        clip_length=4,
        augment=L(ClipAugmentation)(edges=[112, 128, 144], max_size=288, crop=None),
        total_batch_size=2,
        window=4,
        cuts=L(SceneCuts)(end=0.2, interrupt=0.2),
        num_workers=0,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=_videos(HELD_OUT[int(SPLIT)]),
        short_edge="${model.test_size.0}",
        max_size="${model.test_size.1}",
    ),
    evaluator=L(YTVISEvaluator)(truth="${..test.dataset}", classes=CLASSES, output_dir="${train.output_dir}"),
)

optimizer.lr = 7e-4
train.update(
    init_checkpoint=f"{OUTPUT}_frames/model_final.pth",
    output_dir=OUTPUT,
    max_iter=600,
    eval_period=0,
    log_period=20,
    checkpointer=dict(period=200, max_to_keep=2),
)
