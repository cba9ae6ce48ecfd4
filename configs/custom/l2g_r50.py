"""Your own videos or images: the paper's model with the classes of your annotation file.

    l2g train configs/custom/l2g_r50.py data.images=FOLDER data.annotations=FILE train.init_checkpoint=WEIGHTS

`common/data/custom.py` describes the formats and the held-out videos.  WEIGHTS as in `configs/ytvis2021/l2g_r50.py`.
The schedule is the paper's: 120,000 iterations on four V100 GPUs.  The score depends on your data.
"""

from ..common.data.custom import CLASSES, data, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
train.output_dir = "output/custom_l2g_r50"
train.amp.enabled = True
