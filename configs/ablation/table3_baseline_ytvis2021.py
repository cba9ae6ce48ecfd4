"""Table 3, row 1 on YouTube-VIS 2021: global queries go to the decoder without alignment.  Paper: 43.9 AP.

    l2g train configs/ablation/table3_baseline_ytvis2021.py train.init_checkpoint=WEIGHTS --gpus 4

All other settings, machine and WEIGHTS are those of `configs/ytvis2021/l2g_r50.py`.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions

from ..ytvis2021.l2g_r50 import dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner = None
model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
train.output_dir = "output/table3_baseline_ytvis2021"
paper = dict(table=3, row="baseline", dataset="YTVIS-21", AP=43.9, AP50=63.3, AP75=47.4, AR1=40.8, AR10=56.3)
