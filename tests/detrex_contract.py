"""Config keys and methods that detrex's `tools/train_net.py` uses, for tests without detrex.

`tests/test_seam.py` compares this list with the real script.
"""

#: Config keys that the script reads. `model_ema.device` must be set: its fallback `model.device` does not exist here.
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

#: Keys whose content becomes keyword arguments, and the accepted arguments.
ARGUMENTS = {
    "train.ddp": {"broadcast_buffers", "find_unused_parameters", "fp16_compression"},
    "train.clip_grad.params": {"max_norm", "norm_type"},
    "train.checkpointer": {"period", "max_to_keep"},
}

#: Methods that the script calls on the objects of a config.
ATTRIBUTES = {
    "dataloader.train": ("__iter__",),
    "dataloader.test": ("__iter__", "__len__"),
    "dataloader.evaluator": ("reset", "process", "evaluate"),
}
