"""The paper's model: MaskDINO's segmenter on ResNet-50, N = 100 slots, a three-layer aligner of hidden width 1024.

55.2 M parameters for 40 classes, 3.2 M of them in the aligner with l_pos (section 4.2).
"""

from local2global.lazy import LazyCall as L
from local2global.modeling.aligner import L2GAligner
from local2global.modeling.backbone import ResNet
from local2global.modeling.criterion import WEIGHTS, Criterion, ReducedSupervision
from local2global.modeling.decoder import Decoder
from local2global.modeling.encoder import PixelEncoder
from local2global.modeling.losses import PointSampler
from local2global.modeling.matcher import Matcher
from local2global.modeling.model import Local2Global
from local2global.modeling.positions import StaticLocalPositions, TrajectoryPositions
from local2global.modeling.segmenter import Segmenter
from local2global.modeling.tracker import FromLocal, Tracker

DIM, HEADS, LEVELS, QUERIES = 256, 8, 4, 100

model = L(Local2Global)(
    segmenter=L(Segmenter)(
        backbone=L(ResNet)(),
        encoder=L(PixelEncoder)(
            channels=dict(res2=256, res3=512, res4=1024, res5=2048),
            dim=DIM,
            num_heads=HEADS,
            num_layers=6,
            dim_feedforward=2048,
            num_levels=LEVELS,
            checkpointing=False,
        ),
        decoder=L(Decoder)(dim=DIM, num_heads=HEADS, num_layers=9, dim_feedforward=2048, num_levels=LEVELS),
        num_classes="${len:${..classes}}",
        num_queries=QUERIES,
        dim=DIM,
    ),
    tracker=L(Tracker)(
        aligner=L(L2GAligner)(dim=DIM, num_heads=HEADS, dim_feedforward=1024, num_layers=3),
        positions=L(TrajectoryPositions)(),
        local_positions=L(StaticLocalPositions)(num_queries="${...segmenter.num_queries}", dim=DIM),
        first_frame=L(FromLocal)(),
    ),
    criterion=L(Criterion)(
        matcher=L(Matcher)(num_points=12544),
        sampler=L(PointSampler)(num_points=12544),
        supervision=L(ReducedSupervision)(),
        weights=WEIGHTS,
    ),
    classes=[dict(id=1, name="object")],
    test_size=[360, 1333],
)
