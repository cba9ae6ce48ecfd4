"""Three real clips: a bear, a car, and two similar dogs, one of which almost hides behind the other; on a CPU.

    L2G_DATA=path/to/data l2g train configs/demo/three_clips.py

About 20 minutes on one core; `configs/demo/real_clips.py` describes the data.  The two dogs test identity on real
frames.  Single frames are trained until the local queries separate the dogs.  Then come clips of six neighbouring
frames: with clips of three, the queries of the two slots become more similar from frame to frame, until one slot moves
to the other dog (`docs/identity.md`).
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import DynamicLocalPositions

from .real_clips import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset.update(clips=["bear", "car-turn", "dogs-jump"], composites=[])
dataloader.train.starts = [0, 800]
dataloader.train.loaders[1].update(clip_length=6, window=3, total_batch_size=1)

# Static l_pos has no location, so the aligner mixes the local queries of similar objects.
model.tracker.local_positions = L(DynamicLocalPositions)()

train.update(output_dir="output/three_clips", max_iter=1800)
