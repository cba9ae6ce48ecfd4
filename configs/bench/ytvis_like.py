"""Identity bench with the statistics of YouTube-VIS 2021, stage 2 of 2: the method on clips.

    l2g train configs/bench/ytvis_like_frames.py    # stage 1: the segmenter, on single frames
    l2g train configs/bench/ytvis_like.py

As `ovis_like.py`, with two objects per video on average and few occlusions.
"""

from .ovis_like import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.preset = "ytvis_like"
dataloader.test.dataset.preset = "ytvis_like"
train.update(
    init_checkpoint="output/bench/ytvis_like_frames/model_final.pth", output_dir="output/bench/ytvis_like"
)
