"""The main job on generated videos: train from scratch on a CPU, score, watch.  About 6 minutes on two cores.

    make demo        or        l2g train configs/demo/l2g_tiny.py key=value ...

Single frames come first, clips after: a segmenter that finds nothing has nothing to track.
"""

from local2global.data.augment import Identity
from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.data.generated.shapes import load_shapes
from local2global.data.loader import Curriculum, build_test_loader, build_train_loader
from local2global.evaluation.ytvis import YTVISEvaluator
from local2global.lazy import LazyCall as L

from ..common.models.l2g_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from ..common.train import train

model.classes = _PRESETS["demo"].classes
model.test_size = [96, 160]

_videos = L(load_shapes)(preset="demo", num_videos=100_000, seed=1)
_held_out = L(load_shapes)(preset="demo", num_videos=40, seed=2)
dataloader = dict(
    train=L(Curriculum)(
        loaders=[
            L(build_train_loader)(
                dataset=_videos,
                clip_length=1,
                augment=L(Identity)(),
                total_batch_size=4,
                num_workers=1,
                seed="${train.seed}",
            ),
            L(build_train_loader)(
                dataset=_videos,
                clip_length=3,
                augment=L(Identity)(),
                total_batch_size=2,
                num_workers=1,
                seed="${train.seed}",
            ),
        ],
        starts=[0, 1200],
    ),
    test=L(build_test_loader)(dataset=_held_out, short_edge=96, max_size=160),
    evaluator=L(YTVISEvaluator)(
        truth="${..test.dataset}", classes="${model.classes}", output_dir="${train.output_dir}"
    ),
)

optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.update(
    output_dir="output/demo",
    max_iter=1900,
    eval_period=0,
    log_period=20,
    checkpointer=dict(period=200, max_to_keep=2),
)
train.clip_grad.params.max_norm = 1.0
