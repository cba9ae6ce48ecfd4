"""Identity benchmark in excerpts of 16 frames: detection and short-term tracking, without long-term memory.

    l2g eval configs/demo/hard_excerpts.py train.init_checkpoint=output/hard/model_final.pth

Long occlusions dominate AP on the whole videos: a model with perfect masks that forgets an object after three hidden
frames scores AP 12, and a model that tracks only the large occluder scores AP 23.  Excerpts reduce this effect.
"""

from local2global.data.excerpts import excerpts
from local2global.lazy import LazyCall as L

from .l2g_hard import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = L(excerpts)(dataset=dataloader.test.dataset, length=16)
train.output_dir = "output/hard_excerpts"
