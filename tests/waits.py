"""Which operators make the host wait for a device: they give it a value, or a shape that depends on one."""

import torch

WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "bincount",
    "equal",
    "unique_consecutive",
}


def waits(name, args):
    """Whether an operator of that name, called with these arguments, does; indexing does by what is True."""
    if name in {"index", "index_put", "index_put_"}:
        return any(one is not None and one.dtype == torch.bool for one in args[1])
    return name in WAITS
