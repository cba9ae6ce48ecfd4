"""COCO pre-training (section 4.2) with Swin-L: the aligner of the configs `l2g_swinl.py`.

    l2g train configs/coco/l2g_swinl_60k.py --gpus 8

It starts from MaskDINO Swin-L, trained on COCO instances, which is downloaded once (about 890 MB).
All other settings are those of `configs/coco/l2g_r50_60k.py`.
"""

from ..common.models.l2g_swinl import model as _swinl
from .l2g_r50_60k import dataloader, lr_multiplier, model, optimizer, train

model.segmenter.backbone = _swinl.segmenter.backbone
model.segmenter.encoder.channels = _swinl.segmenter.encoder.channels
train.output_dir = "output/coco_l2g_swinl_60k"
train.init_checkpoint = "maskdino-swinl"
