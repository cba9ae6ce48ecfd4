"""Table 4 on VIPSeg: the full model.  Paper: 46.3 VPQ.

    l2g train configs/vipseg/l2g_r50.py train.init_checkpoint=WEIGHTS --gpus 4

Machine: four V100 GPUs, 120,000 iterations of 8 clips of 4 frames.
WEIGHTS is `maskdino-r50-panoptic` (MaskDINO, COCO panoptic) with its aligner pre-trained as in
`configs/coco/l2g_r50_60k.py`.
Queries predict things and stuff alike; only things have box losses.
"""

from local2global.lazy import LazyCall as L
from local2global.results.panoptic import Panoptic

from ..common.data.vipseg import CLASSES, NUM_THINGS, dataloader
from ..common.models.l2g_r50 import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_video as lr_multiplier
from ..common.train import train

model.classes = CLASSES
model.test_size = [720, 1333]
model.criterion.things = NUM_THINGS
model.panoptic = L(Panoptic)(
    things="${..criterion.things}", keep=0.25, temperature=0.06, overlap=0.8, final=False
)
train.output_dir = "output/vipseg_l2g_r50"
train.amp.enabled = True

paper = dict(table=4, row="Local2Global", dataset="VIPSeg", VPQ=46.3, VPQ_Th=46.6, VPQ_St=46.1, STQ=45.3)
