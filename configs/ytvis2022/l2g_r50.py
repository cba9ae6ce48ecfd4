"""Table 2 on YouTube-VIS 2022: the full model.  Paper: 42.3 AP.

    l2g train configs/ytvis2022/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

Machine: four V100 GPUs, 120,000 iterations of 8 clips of 4 frames.
WEIGHTS is the last checkpoint of `configs/coco/l2g_r50_60k.py`: MaskDINO R50 with the aligner pre-trained on COCO
(section 4.2).
The paper does not say whether 42.3 is the mean of the scores on short and on long videos.
"""

from ..common.data.ytvis2022 import CLASSES, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
train.output_dir = "output/ytvis2022_l2g_r50"
train.amp.enabled = True

paper = dict(
    table=2, row="Local2Global", dataset="YTVIS-22", AP=42.3, AP50=64.4, AP75=45.1, AR1=34.5, AR10=48.0
)
