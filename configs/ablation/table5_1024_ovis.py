"""Table 5 on OVIS: hidden dimension 1024 in the aligner, the main model's.  Paper: 37.0 AP.

l2g train configs/ablation/table5_1024_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

Everything else, WEIGHTS too, is `configs/ovis/l2g_r50.py`'s.
"""

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/table5_1024_ovis"
paper = dict(table=5, row="1024", dataset="OVIS", AP=37.0, AP50=64.0, AP75=36.7, AR1=16.4, AR10=43.3)
