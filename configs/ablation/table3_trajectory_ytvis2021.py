"""Table 3, row 3 on YouTube-VIS 2021: aligner and trajectory, the main model.  Paper: 49.4 AP.

l2g train configs/ablation/table3_trajectory_ytvis2021.py train.init_checkpoint=WEIGHTS --gpus 4

Everything else, WEIGHTS too, is `configs/ytvis2021/l2g_r50.py`'s.
"""

from ..ytvis2021.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/table3_trajectory_ytvis2021"
paper = dict(
    table=3, row="+ trajectory", dataset="YTVIS-21", AP=49.4, AP50=70.6, AP75=53.6, AR1=41.7, AR10=56.6
)
