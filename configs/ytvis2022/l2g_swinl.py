"""YouTube-VIS 2022 with Swin-L instead of ResNet-50.  The paper has no row for it.

    l2g train configs/ytvis2022/l2g_swinl.py train.init_checkpoint=WEIGHTS --gpus 8

WEIGHTS is the last checkpoint of `configs/coco/l2g_swinl_60k.py`, or `maskdino-swinl`, whose aligner is random.
All other settings are those of `configs/ytvis2022/l2g_r50.py`.
"""

from ..common.models.l2g_swinl import model as _swinl
from .l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.segmenter.backbone = _swinl.segmenter.backbone
model.segmenter.encoder.channels = _swinl.segmenter.encoder.channels
train.output_dir = "output/ytvis2022_l2g_swinl"
