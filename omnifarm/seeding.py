"""Random numbers that depend on what they are for, never on who draws first.

A seed is derived from a base seed and names (task, concept, prompt, index ...), so any sharding of the
work over workers draws the same numbers.
"""

import hashlib

import torch


def derive_seed(base: int, *names: str | int) -> int:
    """Return a 63-bit seed for `names` under `base`.

    Args:
        base: The run's seed (any integer).
        *names: What the numbers are for, in order; 1 and "1" give different seeds.

    Returns:
        An integer in [0, 2**63), by SHA-256 over a length-prefixed encoding.
    """
    digest = hashlib.sha256()
    for name in (base, *names):
        encoded = f"{type(name).__name__}:{name}".encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator(base: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(base, *names)`."""
    return torch.Generator().manual_seed(derive_seed(base, *names))
