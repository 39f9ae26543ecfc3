"""Where every random number comes from: (run seed, purpose, step, sample), hashed into the key of a counter generator.

Nothing here has state, so a draw does not depend on the batch it falls into, on the number of processes, on what was drawn
before it, or on a resume.  No other module may seed a generator or draw from a global one.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """The stream of random numbers that belongs to one purpose and place.

    Args:
        seed: The run's seed (or, in evaluation, the evaluation seed).
        purpose: What the numbers are for, such as "response" or "coin"; streams of two purposes are independent.
        counters: Where they are used: step, sample, draw ... Their order matters.

    Returns:
        A NumPy generator on Philox, keyed by BLAKE2b of all arguments.

    Example:
        >>> a = generator(10, "coin", 3, 7).random()
        >>> a == generator(10, "coin", 3, 7).random(), a == generator(10, "coin", 7, 3).random()
        (True, False)
    """
    return np.random.Generator(np.random.Philox(key=_hash(seed, purpose, counters, size=16)))


def torch_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """A seed in [0, 2^63) for `torch.manual_seed`, where torch itself must draw (dropout, weight initialisation)."""
    return _hash(seed, purpose, counters, size=8) >> 1


def _hash(seed: int, purpose: str, counters: tuple[int | str, ...], *, size: int) -> int:
    key = "\x1f".join([str(int(seed)), purpose, *(str(c) for c in counters)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=size).digest(), "little")
