"""Table 5 on OVIS: aligner with hidden dimension 512 instead of 1024.  Paper: 35.6 AP.

    l2g train configs/ablation/table5_512_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner.dim_feedforward = 512
train.output_dir = "output/table5_512_ovis"
paper = dict(table=5, row="512", dataset="OVIS", AP=35.6, AP50=60.7, AP75=35.6, AR1=15.5, AR10=41.4)
