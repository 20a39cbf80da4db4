"""Random streams: generators of the pack's own, told by a seed and what they are for."""

from hashlib import blake2b

import torch


def generator(seed: int, *path: int | float) -> torch.Generator:
    """The CPU stream of RandomNoise for ``seed``; with a ``path`` (clip, frame) or a noise level, one of its own."""
    if path:
        seed = int.from_bytes(blake2b(repr((seed, *path)).encode(), digest_size=8).digest(), "big")
    return torch.Generator("cpu").manual_seed(seed)


def of_level(seed: int, sigma: float, *path: int) -> torch.Generator:
    """The stream of every model call at the noise level ``sigma``, however memory or the user splits the run: told by
    five digits, as devices round the rest differently. With a ``path`` one of its own there."""
    return generator(seed, float(f"{sigma:.5g}"), *path)
