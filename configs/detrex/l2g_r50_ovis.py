"""Table 2 on OVIS, assembled from detrex's own ResNet, MaskDINOEncoder and decoder layers.

    python tools/train_net.py --config-file configs/detrex/l2g_r50_ovis.py      with detrex's script

The same model as `configs/ovis/l2g_r50.py`, number for number, and its weights fit both.
"""

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, paper, train
from .components import use_detrex

use_detrex(model)
train.output_dir = "output/detrex_ovis_l2g_r50"
