"""Table 6 on OVIS: every frame of a clip is supervised.  Paper: 36.4 AP.

    l2g train configs/ablation/table6_no_reduced_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.criterion import FullSupervision

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.criterion.supervision = L(FullSupervision)()
train.output_dir = "output/table6_no_reduced_ovis"
paper = dict(
    table=6, row="no reduced supervision", dataset="OVIS", AP=36.4, AP50=62.0, AP75=36.3, AR1=16.5, AR10=44.0
)
