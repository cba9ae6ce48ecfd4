"""The identity bench, stage 2 of 3: the paper's pre-training (section 4.2) of the aligner, on single frames.

    l2g train configs/demo/hard_aligner.py

Learned queries replace those of a last frame; aligner, l_pos, the learned queries and the position MLP train, all else
is frozen.  Table 3's row without trajectory has static positions here too.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Learned

from .l2g_hard import dataloader, lr_multiplier, model, optimizer, train

model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = ["tracker", "ref_point_head"]
dataloader.train.update(clip_length=1, total_batch_size=16)
train.update(
    init_checkpoint="output/hard_frames/model_final.pth", max_iter=200, output_dir="output/hard_aligner"
)
