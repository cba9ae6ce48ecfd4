"""Keyed random generators: each draw has its own generator, seeded by a key instead of a global stream.

A key is (seed, iteration, global clip index, purpose).  Draws do not depend on the number of processes or workers, and
they do not change when training is resumed.
"""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends only on `key` and the type of `device`.

    Args:
        key: integers and words, such as `keyed_generator(*clip.key, "skip")`.
        device: the device of the generator.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
