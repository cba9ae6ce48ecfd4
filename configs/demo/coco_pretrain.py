r"""COCO pre-training (section 4.2) at small size: the segmenter of `coco_segmenter` is frozen, its aligner learns.

    L2G_DATA=path/to/data l2g train configs/demo/coco_pretrain.py \
        train.init_checkpoint=output/coco_segmenter/model_final.pth
    L2G_DATA=path/to/data l2g eval configs/demo/coco_pretrain.py \
        train.init_checkpoint=output/coco_pretrain/model_final.pth

About a minute of one core.  Learned queries reach AP 92.4 through the aligner, the segmenter by itself 94.6; told of
another image they reach 47, for the decoder still looks at the right one.  Video training goes on from the result:

    L2G_DATA=path/to/data l2g train configs/demo/real_clips.py \
        train.init_checkpoint=output/coco_pretrain/model_final.pth train.init_partial=true

where the learned queries are dropped, and the class head, of other classes here, starts new.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Learned

from ..common.models.l2g_small import DIM, model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from .coco_segmenter import CLASSES, dataloader, train

model.classes = CLASSES
model.test_size = [96, 128]
# Every image is padded to 128 x 128, alone as in a batch: what was learned by heart depends on its padding.
model.divisor = 128
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim=DIM)
model.trainable = [r"^tracker\.", r"^segmenter\.decoder\.ref_point_head\."]
optimizer.lr = 1e-3
train.update(output_dir="output/coco_pretrain", max_iter=400, eval_period=100)
