"""Identity benchmark, stage 2 of 2: clips of the `hard` preset, in which look-alikes occlude one another.

    l2g train configs/demo/hard_frames.py    # stage 1: the segmenter, on single frames
    l2g train configs/demo/l2g_hard.py

Runs on a CPU.  Expected AP on the whole held-out videos: 24.4 to 24.7; in excerpts of 16 frames: 37.4 to 38.0.
The six frames of a clip are sampled from nine, so objects move about as far between them as between test frames.  The
aligner is not pre-trained: it is initialised as the identity map.  Backbone and encoder process single frames and are
frozen.  The 50 held-out videos use seed 0, training uses seed 1.  All objects share one class.
"""

from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.modeling.tracker import Tracker
from local2global.modeling.variants import IdentityStartAligner

from .l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.classes = _PRESETS["hard_unnamed"].classes
model.tracker._target_ = Tracker
model.tracker.aligner._target_ = IdentityStartAligner
model.trainable = [r"^(?!segmenter\.(backbone|encoder)\.)"]

dataloader.train = dataloader.train.loaders[1]
dataloader.train.dataset.preset = "hard_unnamed"
dataloader.train.update(clip_length=6, total_batch_size=6, window=4)
dataloader.test.dataset.update(preset="hard_unnamed", num_videos=50, seed=0)

train.update(init_checkpoint="output/hard_frames/model_final.pth", max_iter=900, output_dir="output/hard")
