"""The identity bench, stage 3 of 3: clips of the `hard` preset, where look-alikes hide behind one another.

    l2g train configs/demo/hard_frames.py    # 1: the segmenter, on single frames
    l2g train configs/demo/hard_aligner.py   # 2: the aligner, on single frames too, the rest frozen
    l2g train configs/demo/l2g_hard.py && python scripts/identity.py output/hard

An object of `hard` hides for 13 frames at a time (median), so the six frames of a clip are drawn from 25: in the usual
clip, four frames within six of another, hardly one object in fifty is seen to come back.  Backbone and encoder, which
see single frames, are frozen.  The 50 held-out videos are the preset's own bench, seed 0; training draws from seed 1.
There is one class, so that nothing but identity is hard.
"""

from local2global.data.shapes import PRESETS as _PRESETS

from .l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.classes = _PRESETS["hard_unnamed"].classes
model.trainable = [r"^(?!segmenter\.(backbone|encoder)\.)"]

dataloader.train = dataloader.train.loaders[1]
dataloader.train.dataset.preset = "hard_unnamed"
dataloader.train.update(clip_length=6, total_batch_size=6, window=12)
dataloader.test.dataset.update(preset="hard_unnamed", num_videos=50, seed=0)

train.update(init_checkpoint="output/hard_aligner/model_final.pth", max_iter=450, output_dir="output/hard")
