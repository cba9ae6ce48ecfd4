"""Identity on real pixels, stage 1 of 2: a segmenter of objects that it has not seen, on single frames.

    l2g demo                                                  # the initial weights: generated videos
    L2G_DATA=path/to/data L2G_SPLIT=0 l2g train configs/demo/real_splits_frames.py

Two thirds of the clips, and single images, are trained on; the rest is held out.  See `real_splits.py`.
"""

from local2global.data.augment import ClipAugmentation
from local2global.data.loader import Mixture
from local2global.data.small_sets import large_objects
from local2global.lazy import LazyCall as L
from local2global.modeling.positions import StaticPositions
from local2global.modeling.tracker import Learned

from .real_splits import CLASSES, DATA, OUTPUT, dataloader, lr_multiplier, model, optimizer, train

model.tracker.aligner = None
model.tracker.positions = L(StaticPositions)(
    num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}"
)
model.tracker.first_frame = L(Learned)(num_queries="${...segmenter.num_queries}", dim="${...segmenter.dim}")
model.trainable = None

dataloader.train.dataset = L(Mixture)(
    datasets=[
        dataloader.train.dataset,
        L(large_objects)(root=f"{DATA}/coco_mini", classes=CLASSES, most=4, least=0.01),
    ],
    weights=[1.0, 1.0],
)
dataloader.train.augment = L(ClipAugmentation)(edges=[96, 112, 128, 144, 160], max_size=320, crop=None)
dataloader.train.update(clip_length=1, total_batch_size=6, cuts=None)
optimizer.lr = 1e-3
train.update(
    init_checkpoint="output/demo/model_final.pth",
    init_partial=True,
    max_iter=1500,
    output_dir=f"{OUTPUT}_frames",
)
