"""AdamW as GenVIS trains on video: 5e-5, weight decay .05, a tenth of the rate for the backbone.

The trainer sets `optimizer.params.model`.  `betas` is torch's own default: named here, it would reach the
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
