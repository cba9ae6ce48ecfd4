"""Table 3, row 2 on OVIS: aligner without trajectory positions.  Paper: 36.2 AP.

    l2g train configs/ablation/table3_aligner_ovis.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ovis/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions

from ..ovis.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
train.output_dir = "output/table3_aligner_ovis"
paper = dict(table=3, row="+ aligner", dataset="OVIS", AP=36.2, AP50=63.2, AP75=36.2, AR1=15.9, AR10=43.3)
