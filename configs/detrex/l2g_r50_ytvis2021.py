"""Table 1 on YouTube-VIS 2021, assembled from detrex's own ResNet, MaskDINOEncoder and decoder layers.

    python tools/train_net.py --config-file configs/detrex/l2g_r50_ytvis2021.py      with detrex's script

The same model as `configs/ytvis2021/l2g_r50.py`, number for number, and its weights fit both.
"""

from ..ytvis2021.l2g_r50 import dataloader, lr_multiplier, model, optimizer, paper, train
from .components import use_detrex

use_detrex(model)
train.output_dir = "output/detrex_ytvis2021_l2g_r50"
