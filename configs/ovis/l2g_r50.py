"""Tables 2, 3, 5 and 6 on OVIS: the full model.  Paper: 37.0 AP.

    l2g train configs/ovis/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

Machine: four V100 GPUs, 120,000 iterations of 8 clips of 4 frames.
WEIGHTS is the last checkpoint of `configs/coco/l2g_r50_60k.py`: MaskDINO R50 with the aligner pre-trained on COCO
(section 4.2).
Tables 5 and 6 print an AR10 of 43.3 for this model, Tables 2 and 3 print 43.5.
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
paper_also = [
    dict(paper, table=3, row="+ trajectory"),
    dict(paper, table=5, row="1024", AR10=43.3),
    dict(paper, table=6, row="static l_pos", AR10=43.3),
]
