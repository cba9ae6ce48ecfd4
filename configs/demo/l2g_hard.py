"""The identity bench, stage 2 of 2: clips of the `hard` preset, where look-alikes hide behind one another.

    l2g train configs/demo/hard_frames.py    # 1: the segmenter, on single frames
    l2g train configs/demo/l2g_hard.py && python scripts/identity.py output/hard

The six frames of a clip are drawn from nine, so that an object moves between them little more than between those that
are scored.  The aligner is not pre-trained: it starts as identity, where the segmenter is.  Backbone and encoder, which
see single frames, are frozen.  The 50 held-out videos are the preset's own bench, seed 0; training draws from seed 1.
There is one class, so that nothing but identity is hard.
"""

from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.modeling.aligner import IdentityStartAligner

from .l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.classes = _PRESETS["hard_unnamed"].classes
model.tracker.aligner._target_ = IdentityStartAligner
model.trainable = [r"^(?!segmenter\.(backbone|encoder)\.)"]

dataloader.train = dataloader.train.loaders[1]
dataloader.train.dataset.preset = "hard_unnamed"
dataloader.train.update(clip_length=6, total_batch_size=6, window=4)
dataloader.test.dataset.update(preset="hard_unnamed", num_videos=50, seed=0)

train.update(init_checkpoint="output/hard_frames/model_final.pth", max_iter=900, output_dir="output/hard")
