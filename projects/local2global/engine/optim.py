"""Optimizer parameter groups: learning rate of the backbone, weight decay of norms and embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import check_range

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of all dimensions, SyncBatchNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
# Embeddings that are plain parameters: feature levels, and positions in the Swin of transformers.
_EMBEDDINGS = ("level_embed", "position_embeddings", "relative_position_bias_table")


def parameter_groups(
    model: nn.Module | None,
    base_lr: float,
    weight_decay: float,
    backbone_multiplier: float = 0.1,
    norm_weight_decay: float = 0.0,
    embedding_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Trainable parameters of a model, each listed once, grouped by learning rate and weight decay.

    Args:
        model: the model, wrapped in DistributedDataParallel or not.  The trainer sets it in the config.
        base_lr: learning rate.
        weight_decay: weight decay of parameters that belong to neither a norm nor an embedding.
        backbone_multiplier: factor on `base_lr` for parameters below a module named `backbone`.
        norm_weight_decay: weight decay of norms.
        embedding_weight_decay: weight decay of embeddings, including feature-level embeddings.

    Returns:
        Groups `{params, lr, weight_decay}` as torch's optimizers accept them.

    Raises:
        ValueError: if there is no model, or it has no trainable parameter.
        UserError: if a number is negative.
    """
    numbers = dict(base_lr=base_lr, weight_decay=weight_decay, backbone_multiplier=backbone_multiplier)
    decays = dict(norm_weight_decay=norm_weight_decay, embedding_weight_decay=embedding_weight_decay)
    for name, number in {**numbers, **decays}.items():
        check_range(name, number, 0)
    if model is None:
        raise ValueError("no model: the trainer sets `optimizer.params.model` before it builds the optimizer")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if isinstance(module, _NORMS):
                decay = norm_weight_decay
            elif isinstance(module, nn.Embedding) or name in _EMBEDDINGS:
                decay = embedding_weight_decay
            lr = base_lr * backbone_multiplier if "backbone" in module_name.split(".") else base_lr
            groups.setdefault((lr, decay), []).append(parameter)
    if not groups:
        raise ValueError("no parameter of the model is trainable")
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
