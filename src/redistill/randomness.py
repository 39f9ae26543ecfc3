"""Random numbers that depend only on the run's seed and on what they are used for.

A new generator is created for each use. Its key is a hash of the run's seed, a purpose, and counters such as the step and the
sample.

Random numbers therefore do not depend on the batch, the number of processes, earlier random numbers, or whether a run was
resumed. Other modules call `generator` for NumPy, and `torch_seed` for torch.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """Create the random number generator for one use.

    Args:
        seed: Seed of the run, or of the evaluation.
        purpose: What the numbers are used for, such as "response". Generators with different purposes are independent.
        counters: Indices that identify the use, such as the step and the sample. Their order matters.

    Returns:
        A NumPy generator based on Philox, with the BLAKE2b hash of all arguments as its key.

    Example:
        >>> a = generator(10, "coin", 3, 7).random()
        >>> a == generator(10, "coin", 3, 7).random(), a == generator(10, "coin", 7, 3).random()
        (True, False)
    """
    return np.random.Generator(np.random.Philox(key=_hash(seed, purpose, counters, size=16)))


def permutation(size: int, seed: int, purpose: str, *counters: int | str) -> list[int]:
    """Return the integers from 0 to size - 1 in random order.

    The arguments `seed`, `purpose` and `counters` identify the random number generator, as described in `generator`.
    """
    return [int(index) for index in generator(seed, purpose, *counters).permutation(size)]


def torch_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """Return a seed in [0, 2^63) for random numbers that torch generates.

    torch generates random numbers for dropout, for example. The arguments are described in `generator`.
    """
    return _hash(seed, purpose, counters, size=8) >> 1


def _hash(seed: int, purpose: str, counters: tuple[int | str, ...], *, size: int) -> int:
    key = "\x1f".join([str(int(seed)), purpose, *(str(c) for c in counters)])
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "little")
