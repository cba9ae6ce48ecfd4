"""COCO pre-training (section 4.2): the aligner learns to turn N learned queries into the objects of an image.

    l2g train configs/coco/l2g_r50_60k.py train.init_checkpoint=MASKDINO --gpus 4

MASKDINO is its R50 COCO instance checkpoint.  60 K iterations of 16 images.  Trained: the aligner, l_pos, the learned
queries, and the decoder's position MLP; the positions of the initial (local) queries are g_pos.  Video training starts
from the last checkpoint and leaves the learned queries behind.  The paper gives no score.
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
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim=256)
model.trainable = [r"^tracker\.", r"^segmenter\.decoder\.ref_point_head\."]
optimizer.lr = 1e-4
train.output_dir = "output/coco_l2g_r50_60k"
train.max_iter = 60_000
train.amp.enabled = True
