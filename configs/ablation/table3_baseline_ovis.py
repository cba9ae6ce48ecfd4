"""Table 3, row 1 on OVIS: global queries go to the decoder without alignment.  Paper: 31.6 AP.

    l2g train configs/ablation/table3_baseline_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner = None
model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
train.output_dir = "output/table3_baseline_ovis"
paper = dict(table=3, row="baseline", dataset="OVIS", AP=31.6, AP50=54.7, AP75=32.0, AR1=15.2, AR10=36.1)
