r"""COCO pre-training (section 4.2) at small size: the aligner is trained, the segmenter of `coco_segmenter` is frozen.

    L2G_DATA=path/to/data l2g train configs/demo/coco_pretrain.py \
        train.init_checkpoint=output/coco_segmenter/model_final.pth
    L2G_DATA=path/to/data l2g eval configs/demo/coco_pretrain.py \
        train.init_checkpoint=output/coco_pretrain/model_final.pth

About one minute on one CPU core.  The learned queries reach AP 92.4 through the aligner; the segmenter alone reaches
94.6.  Video training starts from the result:

    L2G_DATA=path/to/data l2g train configs/demo/real_clips.py \
        train.init_checkpoint=output/coco_pretrain/model_final.pth train.init_partial=true

It drops the learned queries and re-initialises the class head, because the classes differ.
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Learned

from ..common.models.l2g_small import model
from .coco_segmenter import CLASSES, dataloader, lr_multiplier, optimizer, train

model.classes = CLASSES
model.test_size = [96, 128]
# All images are padded to 128x128, in training and in evaluation: a memorised image depends on its padding.
model.divisor = 128
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = [r"^tracker\.", r"^segmenter\.decoder\.ref_point_head\."]
optimizer.params.backbone_multiplier = 0.1
train.update(output_dir="output/coco_pretrain", max_iter=400, eval_period=100)
