"""Real frames, generalisation: a small model is fitted to nine clips and scored on four others.

    l2g demo                                                         # the initial weights: generated videos
    L2G_DATA=path/to/data l2g train configs/demo/held_out_clips.py

The classes of the held-out clips also occur in the training clips.  Composites are left out, because each of them
contains a cut-out of a held-out clip.  Nine clips are far too few to learn the classes: the scores are low, and serve
to compare ways of running one model, such as with and without given first masks (`docs/video.md`).
"""

from local2global.data.augment import ClipAugmentation
from local2global.lazy import LazyCall as L

from ..common.models.l2g_tiny import model
from .real_clips import CLASSES, dataloader, lr_multiplier, optimizer, train

HELD_OUT = ["dogs-jump", "rollerblade", "mallard-fly", "car-shadow"]
TRAINED = [
    "bmx-trees", "bear", "blackswan", "car-turn", "cows", "libby", "lucia", "soccerball", "train",
]  # fmt: skip

model.classes = CLASSES
model.test_size = [128, 256]
dataloader.test.dataset.update(clips=HELD_OUT, composites=[])
for _loader in dataloader.train.loaders:
    _loader.dataset = L(dataloader.test.dataset._target_)(
        root=dataloader.test.dataset.root, classes=CLASSES, clips=TRAINED, composites=[]
    )
    _loader.augment = L(ClipAugmentation)(edges=[96, 112, 128, 144, 160], max_size=320, crop=None)
dataloader.train.starts = [0, 150]
train.update(
    init_checkpoint="output/demo/model_final.pth",
    output_dir="output/held_out_clips",
    max_iter=300,
    eval_period=0,
    log_period=20,
    checkpointer=dict(period=50, max_to_keep=3),
)
