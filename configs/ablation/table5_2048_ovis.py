"""Table 5 on OVIS: aligner with hidden dimension 2048 instead of 1024.  Paper: 37.0 AP.

    l2g train configs/ablation/table5_2048_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner.dim_feedforward = 2048
train.output_dir = "output/table5_2048_ovis"
paper = dict(table=5, row="2048", dataset="OVIS", AP=37.0, AP50=63.2, AP75=36.7, AR1=16.4, AR10=42.9)
