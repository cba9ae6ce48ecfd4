"""Table 6 on OVIS: static l_pos, the main model's.  Paper: 37.0 AP.

l2g train configs/ablation/table6_static_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

Everything else, WEIGHTS too, is `configs/ovis/l2g_r50.py`'s.
"""

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/table6_static_ovis"
paper = dict(table=6, row="static l_pos", dataset="OVIS", AP=37.0, AP50=64.0, AP75=36.7, AR1=16.4, AR10=43.3)
