"""Parameter groups: which parameters learn slower, and which do not decay."""

from __future__ import annotations

from typing import Any

from torch import nn

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of every dimension, and SyncBatchNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
# Embeddings that are bare parameters: of feature levels here, of positions in the Swin of transformers.
_EMBEDDINGS = ("level_embed", "position_embeddings", "relative_position_bias_table")


def parameter_groups(
    model: nn.Module | None,
    base_lr: float,
    weight_decay: float,
    backbone_multiplier: float = 0.1,
    norm_weight_decay: float = 0.0,
    embedding_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """The trainable parameters of a model, each once, grouped by learning rate and weight decay.

    Args:
        model: the model, wrapped for several processes or not; the trainer puts it into the config.
        base_lr: learning rate.
        weight_decay: weight decay of everything that is neither a norm nor an embedding.
        backbone_multiplier: the learning rate of parameters below a module named `backbone`, as a share of
            `base_lr`.
        norm_weight_decay: weight decay of the parameters of norms.
        embedding_weight_decay: weight decay of embeddings, of feature levels too.

    Returns:
        Groups `{params, lr, weight_decay}` as torch's optimizers take them.

    Raises:
        ValueError: there is no model, or nothing of it is trainable.
    """
    if model is None:
        raise ValueError("no model to optimise: the trainer sets `optimizer.params.model` before building it")
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
