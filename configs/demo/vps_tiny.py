"""Panoptic segmentation of generated videos: things that move before ground whose borders move, from scratch on a CPU.

    l2g train configs/demo/vps_tiny.py            about 8 minutes on one core
    l2g eval configs/demo/vps_tiny.py --weights output/vps model.panoptic.final=true

Three classes of things and four of stuff are all queries; only things have boxes to be learned.  Maps go to
`output/vps/inference/pan_pred`, their lists to `pred.json` beside it.
"""

from local2global.data.augment import Identity
from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.data.generated.shapes import load_shapes
from local2global.data.loader import Curriculum, build_test_loader, build_train_loader
from local2global.data.readers.panoptic import PanopticRecords
from local2global.evaluation.vps_evaluator import VPSEvaluator
from local2global.lazy import LazyCall as L
from local2global.results.panoptic import Panoptic

from ..common.models.l2g_tiny import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_short as lr_multiplier
from ..common.train import train

CLASSES = _PRESETS["panoptic"].classes
THINGS = sum(c["isthing"] for c in CLASSES)

model.classes = CLASSES
model.test_size = [96, 160]
model.criterion.things = THINGS
model.panoptic = L(Panoptic)(things=THINGS, keep=0.25, temperature=0.06, overlap=0.8, final=False)

_videos = L(load_shapes)(preset="panoptic", num_videos=100_000, seed=1)
_held_out = L(load_shapes)(preset="panoptic", num_videos=40, seed=2)
dataloader = dict(
    train=L(Curriculum)(
        loaders=[
            L(build_train_loader)(
                dataset=_videos,
                clip_length=1,
                augment=L(Identity)(),
                total_batch_size=4,
                num_workers=0,
                seed="${train.seed}",
            ),
            L(build_train_loader)(
                dataset=_videos,
                clip_length=3,
                augment=L(Identity)(),
                total_batch_size=2,
                num_workers=0,
                seed="${train.seed}",
            ),
        ],
        starts=[0, 1100],
    ),
    test=L(build_test_loader)(dataset=_held_out, short_edge=96, max_size=160),
    evaluator=L(VPSEvaluator)(
        truth=L(PanopticRecords)(dataset="${...test.dataset}"),
        classes="${model.classes}",
        output_dir="${train.output_dir}/inference",
    ),
)

optimizer.lr = 1e-3
optimizer.params.backbone_multiplier = 1.0
train.update(
    output_dir="output/vps",
    max_iter=1700,
    eval_period=0,
    log_period=20,
    checkpointer=dict(period=200, max_to_keep=2),
)
train.clip_grad.params.max_norm = 1.0
