"""What detrex's `tools/train_net.py` touches: the checked-in list that stands for it where it is not installed.

`tests/test_seam.py` holds the list against the real script.
"""

#: Keys it reads of a config; `model_ema.device` must not be empty, its fallback `model.device` is none of ours.
KEYS = (
    "model",
    "optimizer",
    "optimizer.params.model",
    "lr_multiplier",
    "dataloader",
    "dataloader.train",
    "dataloader.test",
    "dataloader.evaluator",
    "train.output_dir",
    "train.init_checkpoint",
    "train.max_iter",
    "train.amp.enabled",
    "train.ddp",
    "train.clip_grad.enabled",
    "train.clip_grad.params",
    "train.seed",
    "train.fast_dev_run.enabled",
    "train.checkpointer",
    "train.eval_period",
    "train.log_period",
    "train.wandb.enabled",
    "train.wandb.params",
    "train.wandb.params.dir",
    "train.model_ema.enabled",
    "train.model_ema.decay",
    "train.model_ema.device",
    "train.model_ema.use_ema_weights_for_eval_only",
    "train.device",
)

#: Keys whose content it hands on as keyword arguments, and the only ones taken there.
ARGUMENTS = {
    "train.ddp": {"broadcast_buffers", "find_unused_parameters", "fp16_compression"},
    "train.clip_grad.params": {"max_norm", "norm_type"},
    "train.checkpointer": {"period", "max_to_keep"},
}

#: What it calls on the objects that the config describes.
ATTRIBUTES = {
    "dataloader.train": ("__iter__",),
    "dataloader.test": ("__iter__", "__len__"),
    "dataloader.evaluator": ("reset", "process", "evaluate"),
}
