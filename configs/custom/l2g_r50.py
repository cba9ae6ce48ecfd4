"""The paper's model on your own videos or images, whose classes are the annotation file's.

    l2g train configs/custom/l2g_r50.py data.images=FOLDER data.annotations=FILE train.init_checkpoint=WEIGHTS

See `common/data/custom.py`; WEIGHTS as in `configs/ytvis2021/l2g_r50.py`.
"""

from ..common.data.custom import CLASSES, data, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
train.output_dir = "output/custom_l2g_r50"
train.amp.enabled = True
