"""Identity benchmark, stage 1 of 2: the segmenter on single frames of the `hard` preset, without aligner.

    l2g train configs/demo/hard_frames.py

Runs on a CPU.  All rows of Table 3 on the benchmark start from these weights; see `l2g_hard.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions

from .l2g_hard import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner = None
model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
model.trainable = None
dataloader.train.update(clip_length=1, total_batch_size=4)
train.update(init_checkpoint="", max_iter=2400, output_dir="output/hard_frames")
