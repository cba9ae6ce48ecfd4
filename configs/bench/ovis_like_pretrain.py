"""Identity bench with the statistics of OVIS: the aligner is pre-trained on single frames, as in section 4.2.

    l2g train configs/bench/ovis_like_frames.py      # the segmenter
    l2g train configs/bench/ovis_like_pretrain.py    # the aligner
    l2g train configs/bench/ovis_like.py train.init_checkpoint=output/bench/ovis_like_pretrain/model_final.pth

All other weights are frozen, except the position MLP of the decoder.  Video training drops the learned queries.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Learned

from .ovis_like import dataloader, lr_multiplier, model, optimizer, train

model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = [r"^tracker\.", r"^segmenter\.decoder\.ref_point_head\."]
dataloader.train.update(clip_length=1, total_batch_size=16)
train.update(max_iter=1500, output_dir="output/bench/ovis_like_pretrain")
