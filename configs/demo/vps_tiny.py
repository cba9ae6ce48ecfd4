"""Panoptic segmentation of generated videos, trained from scratch.  About 8 minutes on one CPU core.

    l2g train configs/demo/vps_tiny.py
    l2g eval configs/demo/vps_tiny.py --weights output/vps model.panoptic.final=true

The videos show three classes of things in front of four classes of stuff.  Queries predict both; only things have box
losses.  Panoptic maps are written to `output/vps/inference/pan_pred`, their segments to `pred.json` beside it.
"""

from local2global.data.generated.shapes import PRESETS as _PRESETS
from local2global.data.readers.panoptic import PanopticRecords
from local2global.evaluation.vps_evaluator import VPSEvaluator
from local2global.lazy import LazyCall as L
from local2global.modeling.tracker import Tracker
from local2global.results.panoptic import Panoptic

from .l2g_tiny import dataloader, lr_multiplier, model, optimizer, train

model.tracker._target_ = Tracker
model.classes = _PRESETS["panoptic"].classes
model.criterion.things = sum(c["isthing"] for c in model.classes)
model.panoptic = L(Panoptic)(
    things="${..criterion.things}", keep=0.25, temperature=0.06, overlap=0.8, final=False
)

dataloader.train.starts = [0, 1100]
for _loader in dataloader.train.loaders:
    _loader.dataset.preset = "panoptic"
    _loader.num_workers = 0
dataloader.test.dataset.preset = "panoptic"
dataloader.evaluator = L(VPSEvaluator)(
    truth=L(PanopticRecords)(dataset="${...test.dataset}"),
    classes="${model.classes}",
    output_dir="${train.output_dir}/inference",
)

train.update(output_dir="output/vps", max_iter=1700)
