"""Evaluation on held-out training videos, for datasets whose validation truth is not public.

In a config:

from ..common.data.holdout import hold_out
hold_out(dataloader, fraction=0.1, seed=0)
"""

from copy import deepcopy

from local2global.data.holdout import holdout
from local2global.lazy import LazyCall as L


def hold_out(dataloader, fraction, seed):
    """Holds out training videos and evaluates on them; the videos of a mixture are its last dataset."""
    train = dataloader.train.dataset
    place, key = (
        (train.datasets, len(train.datasets) - 1) if "datasets" in train else (dataloader.train, "dataset")
    )
    videos = place[key]
    place[key] = L(holdout)(dataset=deepcopy(videos), fraction=fraction, seed=seed, held=False)
    dataloader.test.dataset = L(holdout)(dataset=deepcopy(videos), fraction=fraction, seed=seed, held=True)
