"""COCO pre-training (section 4.2): the aligner learns to decode N learned queries into the objects of an image.

    l2g train configs/coco/l2g_r50_60k.py --gpus 4

Machine: four V100 GPUs, 60,000 iterations of 16 images.  The paper reports no score.
It starts from MaskDINO R50, trained on COCO instances, which is downloaded once.  Trained parameters: aligner, l_pos,
learned queries, and the position MLP of the decoder.  g_pos is computed from the boxes of the local queries.  Video
training starts from the last checkpoint and drops the learned queries.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Learned

from ..common.data.coco import CLASSES, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_pretrain as lr_multiplier
from ..common.train import train

model.classes = CLASSES
model.test_size = [800, 1333]
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = [r"^tracker\.", r"^segmenter\.decoder\.ref_point_head\."]
optimizer.lr = 1e-4
train.output_dir = "output/coco_l2g_r50_60k"
train.init_checkpoint = "maskdino-r50"
train.max_iter = 60_000
train.amp.enabled = True
