"""What the trainer reads: the keys of detrex's `configs/common/train.py`, with the values of video training.

Ours besides: `amp.dtype`, `init_partial` and `accumulate`.  Under detrex's trainer they are not read.
"""

import torch

train = dict(
    # Folder of checkpoints, logs and results.
    output_dir="./output",
    # Weights to start from; "" starts from scratch.
    init_checkpoint="",
    # Accept weights that fill a part of the model incompletely; what doesn't fit starts new.
    init_partial=False,
    max_iter=120_000,
    # Mixed precision; bfloat16 needs no loss scaling.
    amp=dict(enabled=False, dtype="bfloat16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    # Over the whole model, as GenVIS trains.
    clip_grad=dict(enabled=True, params=dict(max_norm=0.01, norm_type=2)),
    # Every random draw is keyed by it.
    seed=0,
    fast_dev_run=dict(enabled=False),
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,
    log_period=20,
    wandb=dict(
        enabled=False,
        params=dict(dir="./wandb_output", project="local2global", name="local2global"),
    ),
    # detrex's trainer needs a device here.
    model_ema=dict(enabled=False, decay=0.999, device="${..device}", use_ema_weights_for_eval_only=False),
    # Batches whose gradients are averaged before one step.
    accumulate=1,
    device="cuda" if torch.cuda.is_available() else "cpu",
)
