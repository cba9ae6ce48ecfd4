"""Identity bench with the statistics of OVIS, stage 2 of 2: the method on clips.

    l2g train configs/bench/ovis_like_frames.py    # stage 1: the segmenter, on single frames
    l2g train configs/bench/ovis_like.py
    l2g identity configs/bench/ovis_like.py --weights output/bench/ovis_like_frames output/bench/ovis_like

Runs on a CPU.  `docs/identity.md` has the scores.  Backbone and encoder process single frames and are frozen.  The
aligner is not pre-trained: it is initialised as the identity map.  Training uses seed 1, the held-out videos seed 0.
In two of five clips, objects appear, vanish or return at a scene cut.
"""

from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.data.scene_cuts import SceneCuts
from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Tracker
from local2global.modeling.variants import HiddenMasksCriterion, IdentityStartAligner

from ..demo.l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.classes = _PRESETS["ovis_like"].classes
model.test_size = [64, 96]
model.segmenter.num_queries = 40
model.tracker._target_ = Tracker
model.tracker.aligner._target_ = IdentityStartAligner
model.trainable = [r"^(?!segmenter\.(backbone|encoder)\.)"]
# The mask of a hidden object's slot has to become empty: it would move to another object, and the slot with it.
model.criterion._target_ = HiddenMasksCriterion
# A mask has 16 x 24 pixels.
model.criterion.matcher.num_points = 128
model.criterion.sampler.num_points = 128

dataloader.train = dataloader.train.loaders[1]
dataloader.train.dataset.update(preset="ovis_like", num_videos=120)
dataloader.train.update(
    clip_length=4, total_batch_size=8, window=4, cuts=L(SceneCuts)(end=0.2, interrupt=0.2)
)
dataloader.test.dataset.update(preset="ovis_like", num_videos=50, seed=0)

optimizer.lr = 7e-4
train.update(
    init_checkpoint="output/bench/ovis_like_frames/model_final.pth",
    # 120 videos have 8,300 frames of 65 kB: 540 MB, shared by all rows.
    cache_features="output/bench/features",
    max_iter=2500,
    output_dir="output/bench/ovis_like",
)
