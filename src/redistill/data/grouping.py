"""Partition of a batch into micro-batches of sequences of similar length.

Sequences of similar length need little padding. Every partition gives the same gradient, because the loss is divided by the
numbers of tokens and sequences in the global batch. Only the cost differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from redistill.contracts import DrawItem


@dataclass(frozen=True)
class ReadCost:
    """Cost of one forward and backward pass on a CPU or on an accelerator.

    The unit of cost is the time in which the device processes one token.

    Args:
        overhead_tokens: The part of the cost that does not depend on the number of tokens. It is caused by the launch of
            kernels and by the accumulation of gradients.
        max_tokens: The number of tokens in a micro-batch with which the device is fully used. A larger micro-batch needs
            more memory for activations, and is not faster per token.
    """

    overhead_tokens: int
    max_tokens: int

    def limited(self, max_tokens: int | None) -> "ReadCost":
        """Return the same cost with at most `max_tokens` tokens in a micro-batch.

        If `max_tokens` is None, the limit does not change.

        Example:
            >>> ReadCost(48, 2048).limited(512).max_tokens, ReadCost(48, 2048).limited(None).max_tokens
            (512, 2048)
        """
        return self if max_tokens is None else replace(self, max_tokens=min(self.max_tokens, max_tokens))


# Measured on CPUs (docs/performance.md); the overhead on an accelerator is that of launching a thousand kernels.
CPU = ReadCost(overhead_tokens=48, max_tokens=2048)
ACCELERATOR = ReadCost(overhead_tokens=2048, max_tokens=16384)


def read_cost(device: torch.device | str) -> ReadCost:
    """Return the cost of a forward and backward pass on `device`.

    The unit of cost is the time in which the device processes one token.  The result is the constant `CPU` or `ACCELERATOR`.
    """
    return CPU if torch.device(device).type == "cpu" else ACCELERATOR


def grouped(items: Sequence[DrawItem], size: int | None, cost: ReadCost) -> list[list[DrawItem]]:
    r"""Partition sequences into micro-batches of minimum cost, longest sequences first.

    .. math:: \min \sum_g \bigl( n_g \max_{i \in g} T_i + \text{overhead} \bigr)

    T_i is the length of sequence i in tokens, n_g the number of sequences of group g, and "overhead" is `cost.overhead_tokens`.
    The sequences are sorted by length.  The minimum is over all partitions of the sorted sequences into contiguous groups.

    Answers from the data (role "sft") and sampled answers (role "distillation") may be in the same group.  Two groups are
    formed if the padding of one group would cost more than the overhead of a second group.

    Args:
        items: The sequences with their roles.
        size: Maximum number of sequences with the same role in a group.  If None, a group has at most `cost.max_tokens` tokens,
            including padding; only a group of one sequence may have more tokens.
        cost: The cost of one forward and backward pass on the device.

    Returns:
        One list of items per micro-batch; the lists, one after the other, are `items` sorted by decreasing length.
    """
    everything = sorted(items, key=lambda item: -len(item.sequence.token_ids))
    best: list[tuple[int, int]] = [(0, 0)]  # for the first N items: (cost in tokens, index at which the last group begins)
    for end in range(1, len(everything) + 1):
        options: list[tuple[int, int]] = []
        num_sampled = num_gold = 0
        for begin in range(end - 1, -1, -1):
            item = everything[begin]
            num_sampled, num_gold = num_sampled + ("distillation" in item.roles), num_gold + ("sft" in item.roles)
            padded = (end - begin) * len(item.sequence.token_ids)
            is_full = padded > cost.max_tokens if size is None else max(num_sampled, num_gold) > size
            if is_full and begin < end - 1:
                break
            options.append((best[begin][0] + padded + cost.overhead_tokens, begin))
        best.append(min(options))  # of partitions with equal cost, the one with the larger last group
    groups = []
    end = len(everything)
    while end:
        begin = best[end][1]
        groups.append(everything[begin:end])
        end = begin
    return groups[::-1]
