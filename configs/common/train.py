"""Trainer settings: the keys of detrex's `configs/common/train.py`, with the values of video training.

The keys `amp.dtype`, `cache_features`, `init_partial` and `accumulate` are additions, which detrex's trainer ignores.
"""

import torch

train = dict(
    # Output folder of checkpoints, logs and results.
    output_dir="./output",
    # Initial weights; "" trains from scratch.
    init_checkpoint="",
    # Accept initial weights that fill a part of the model incompletely.
    init_partial=False,
    max_iter=120_000,
    # Mixed precision; bfloat16 needs no loss scaling.
    amp=dict(enabled=False, dtype="bfloat16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    # Norm over the whole model, as in GenVIS.
    clip_grad=dict(enabled=True, params=dict(max_norm=0.01, norm_type=2)),
    # Part of the key of every random draw.
    seed=0,
    fast_dev_run=dict(enabled=False),
    checkpointer=dict(period=5000, max_to_keep=5),
    eval_period=5000,
    log_period=20,
    wandb=dict(
        enabled=False,
        params=dict(dir="./wandb_output", project="local2global", name="local2global"),
    ),
    # detrex's trainer requires a device here.
    model_ema=dict(enabled=False, decay=0.999, device="${..device}", use_ema_weights_for_eval_only=False),
    # Batches per optimizer step.
    accumulate=1,
    # Folder for the features of a frozen backbone and encoder, which runs share; "" computes them every time.
    cache_features="",
    device="cuda" if torch.cuda.is_available() else "cpu",
)
