"""Tables 1 and 3 on YouTube-VIS 2021: the full model.  Paper: 49.4 AP.

    l2g train configs/ytvis2021/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

Machine: four V100 GPUs, 120,000 iterations of 8 clips of 4 frames.
WEIGHTS is the last checkpoint of `configs/coco/l2g_r50_60k.py`: MaskDINO R50 with the aligner pre-trained on COCO
(section 4.2).
"""

from ..common.data.ytvis2021 import CLASSES, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
train.output_dir = "output/ytvis2021_l2g_r50"
train.amp.enabled = True

paper = dict(
    table=1, row="Local2Global", dataset="YTVIS-21", AP=49.4, AP50=70.6, AP75=53.6, AR1=41.7, AR10=56.6
)
paper_also = [dict(paper, table=3, row="+ trajectory")]
