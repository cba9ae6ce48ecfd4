"""Table 6 on OVIS: l_pos is computed from the boxes of the local queries.  Paper: 36.5 AP.

    l2g train configs/ablation/table6_dynamic_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import DynamicLocalPositions

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.local_positions = L(DynamicLocalPositions)()
train.output_dir = "output/table6_dynamic_ovis"
paper = dict(table=6, row="dynamic l_pos", dataset="OVIS", AP=36.5, AP50=62.7, AP75=36.3, AR1=16.2, AR10=43.1)
