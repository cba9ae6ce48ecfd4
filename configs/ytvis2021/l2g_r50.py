"""Table 1 on YouTube-VIS 2021, the paper's model.  Paper: 49.4 AP.  4 GPUs, 120 K iterations of 8 four-frame clips.

    l2g train configs/ytvis2021/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

WEIGHTS is `configs/coco/l2g_r50_60k.py`'s last checkpoint: MaskDINO R50, its aligner pre-trained on COCO (section 4.2).
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
