"""Keyed random numbers.

The hash of (run seed, purpose, step, sample) is the key of a counter-based generator.

Generators have no state between calls. Random numbers therefore do not depend on the batch, the number of processes, earlier
random numbers, or a resume. No other module may seed a generator or use a global one.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """The random stream of one key.

    Args:
        seed: Seed of the run, or of the evaluation.
        purpose: What the numbers are used for, such as "response" or "coin"; streams of different purposes are independent.
        counters: Indices that identify the use, such as step and sample; their order matters.

    Returns:
        A NumPy generator based on Philox, with the BLAKE2b hash of all arguments as its key.

    Example:
        >>> a = generator(10, "coin", 3, 7).random()
        >>> a == generator(10, "coin", 3, 7).random(), a == generator(10, "coin", 7, 3).random()
        (True, False)
    """
    return np.random.Generator(np.random.Philox(key=_hash(seed, purpose, counters, size=16)))


def permutation(size: int, seed: int, purpose: str, *counters: int | str) -> list[int]:
    """A random order of 0 .. size - 1.

    The other arguments select the random stream; see `generator`.
    """
    return [int(index) for index in generator(seed, purpose, *counters).permutation(size)]


def torch_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """A seed in [0, 2^63) for `torch.manual_seed`.

    It is used for random numbers of torch, such as dropout and weight initialisation.
    """
    return _hash(seed, purpose, counters, size=8) >> 1


def _hash(seed: int, purpose: str, counters: tuple[int | str, ...], *, size: int) -> int:
    key = "\x1f".join([str(int(seed)), purpose, *(str(c) for c in counters)])
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "little")
