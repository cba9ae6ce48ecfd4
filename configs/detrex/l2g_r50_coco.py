"""COCO pre-training (section 4.2), assembled from detrex's own ResNet, MaskDINOEncoder and decoder layers.

    python tools/train_net.py --config-file configs/detrex/l2g_r50_coco.py      with detrex's script

The same model as `configs/coco/l2g_r50_60k.py`, number for number, and its weights fit both.
"""

from ..coco.l2g_r50_60k import dataloader, lr_multiplier, model, optimizer, train
from .components import use_detrex

use_detrex(model)
train.output_dir = "output/detrex_coco_l2g_r50"
