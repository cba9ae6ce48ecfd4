"""AdamW with GenVIS's settings for video: rate 5e-5, weight decay .05, backbone rate x 0.1.

The trainer sets `optimizer.params.model`.  `betas` is left at torch's default: a list in the config would enter the
optimizer's checkpoint as a config object under detectron2.
"""

import torch

from local2global.engine.optim import parameter_groups
from local2global.lazy import LazyCall as L

AdamW = L(torch.optim.AdamW)(
    params=L(parameter_groups)(
        model=None,
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        backbone_multiplier=0.1,
        norm_weight_decay=0.0,
        embedding_weight_decay=0.0,
    ),
    lr=5e-5,
    weight_decay=0.05,
)
