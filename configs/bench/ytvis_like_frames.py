"""Identity bench with the statistics of YouTube-VIS 2021, stage 1 of 2: the segmenter on single frames.

    l2g train configs/bench/ytvis_like_frames.py

As `ovis_like_frames.py`.
"""

from .ovis_like_frames import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.preset = "ytvis_like"
dataloader.test.dataset.preset = "ytvis_like"
train.output_dir = "output/bench/ytvis_like_frames"
