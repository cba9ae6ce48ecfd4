"""A local score where validation truth is on a server only: part of the training videos is kept for it.

from ..common.data.holdout import hold_out
hold_out(dataloader, fraction=0.1, seed=0)

in a config turns its recipe into one with a score of its own.
"""

from copy import deepcopy

from local2global.data.holdout import holdout
from local2global.lazy import LazyCall as L


def hold_out(dataloader, fraction, seed):
    """Train on the others, test on the videos kept; a mixture's videos are its last dataset."""
    train = dataloader.train.dataset
    place, key = (
        (train.datasets, len(train.datasets) - 1) if "datasets" in train else (dataloader.train, "dataset")
    )
    videos = place[key]
    place[key] = L(holdout)(dataset=deepcopy(videos), fraction=fraction, seed=seed, held=False)
    dataloader.test.dataset = L(holdout)(dataset=deepcopy(videos), fraction=fraction, seed=seed, held=True)
