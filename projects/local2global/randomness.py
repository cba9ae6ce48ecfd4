"""Keyed randomness: every draw comes from a generator named by what it is for, never from a global stream.

A draw keyed by (seed, iteration, global clip index, purpose) is the same after a resume and for any number of
processes or workers.
"""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on `key` alone (and on the kind of device that draws).

    Args:
        key: integers and words, e.g. `keyed_generator(*clip.key, "skip")`.
        device: where the numbers are drawn.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
