"""The identity bench: the demo's model on the `hard` preset, where look-alikes hide behind one another.

    l2g train configs/demo/l2g_hard.py && python scripts/identity.py output/hard

The 50 held-out videos are the preset's own bench, seed 0; training draws from seed 1.  There is one class, so that
nothing but identity is hard.
"""

from local2global.data.shapes import PRESETS as _PRESETS

from .l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.classes = _PRESETS["hard_unnamed"].classes
for _loader in dataloader.train.loaders:
    _loader.dataset.preset = "hard_unnamed"
dataloader.train.loaders[1].clip_length = 4
dataloader.train.loaders[1].total_batch_size = 3
dataloader.test.dataset.update(preset="hard_unnamed", num_videos=50, seed=0)

train.output_dir = "output/hard"
