"""Table 2 on OVIS, the paper's model.  Paper: 37.0 AP.  4 GPUs, 120 K iterations of 8 four-frame clips.

    l2g train configs/ovis/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

WEIGHTS is `configs/coco/l2g_r50_60k.py`'s last checkpoint: MaskDINO R50, its aligner pre-trained on COCO (section 4.2).
"""

from ..common.data.ovis import CLASSES, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
train.output_dir = "output/ovis_l2g_r50"
train.amp.enabled = True

paper = dict(table=2, row="Local2Global", dataset="OVIS", AP=37.0, AP50=64.0, AP75=36.7, AR1=16.4, AR10=43.5)
