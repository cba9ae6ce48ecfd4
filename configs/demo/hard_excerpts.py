"""The identity bench's held-out videos in pieces of 16 frames: finding and following, without long memory.

    l2g eval configs/demo/hard_excerpts.py train.init_checkpoint=output/hard/model_final.pth

A model that segments every frame perfectly but forgets what has been hidden for three frames has AP 12 on the whole
videos, and one that follows nothing but the large occluder has 23: there, AP is memory.  Here most of it is not.
"""

from local2global.data.excerpts import excerpts
from local2global.lazy import LazyCall as L

from .l2g_hard import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset = L(excerpts)(dataset=dataloader.test.dataset, length=16)
train.output_dir = "output/hard_excerpts"
