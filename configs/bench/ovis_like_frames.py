"""Identity bench with the statistics of OVIS, stage 1 of 2: the segmenter on single frames, without aligner.

    l2g train configs/bench/ovis_like_frames.py

Runs on a CPU.  All rows start from these weights; see `ovis_like.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions
from local2global.modeling.tracker import Learned

from .ovis_like import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner = None
model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
# The decoder has to read the frame: a local query already holds its mask, and the decoder would learn to copy it.
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = None
dataloader.train.dataset.num_videos = 100_000
dataloader.train.update(clip_length=1, total_batch_size=6)
train.update(init_checkpoint="", cache_features="", max_iter=2000, output_dir="output/bench/ovis_like_frames")
