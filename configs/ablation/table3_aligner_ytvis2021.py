"""Table 3, row 2 on YouTube-VIS 2021: aligner without trajectory positions.  Paper: 48.9 AP.

    l2g train configs/ablation/table3_aligner_ytvis2021.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ytvis2021/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions

from ..ytvis2021.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
train.output_dir = "output/table3_aligner_ytvis2021"
paper = dict(table=3, row="+ aligner", dataset="YTVIS-21", AP=48.9, AP50=70.1, AP75=52.9, AR1=41.3, AR10=55.8)
