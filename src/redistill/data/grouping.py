"""Which sequences are read together: a draw cut into micro-batches by length, so that little padding is read.

Counts and coefficients are those of the global batch, so any cut gives the same gradient; this is about cost alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.contracts import DrawItem


@dataclass(frozen=True)
class Reading:
    """What one forward and backward costs on a kind of device, counted in tokens read.

    Args:
        start: The cost that does not depend on how much is read: kernels are launched, each weight's gradient is passed over.
        most: So many keep the device busy; with more at once nothing is faster, and more activations are held.
    """

    start: int
    most: int


# Measured on CPUs (docs/performance.md); an accelerator's `start` is the launching of a thousand kernels.
CPU = Reading(start=48, most=2048)
ACCELERATOR = Reading(start=2048, most=16384)


def reading(device: torch.device | str) -> Reading:
    """What reading costs on `device`."""
    return CPU if torch.device(device).type == "cpu" else ACCELERATOR


def grouped(items: Sequence[DrawItem], size: int | None, cost: Reading) -> list[list[DrawItem]]:
    r"""The items of each micro-batch, longest first.

    .. math:: \min \sum_g \bigl( n_g \max_{i \in g} T_i + \text{start} \bigr)

    over all cuts of the sequences in order of their length T_i into groups g of n_g sequences.  Gold and sampled sequences
    share a forward where their lengths are similar, and have one each where padding would cost more.

    Args:
        size: No group has more sequences of a role than this; None cuts where `cost.most` is reached.
    """
    everything = sorted(items, key=lambda item: -len(item.sequence.token_ids))
    best: list[tuple[int, int]] = [(0, 0)]  # of the first N items: tokens, and where the last group begins
    for end in range(1, len(everything) + 1):
        options: list[tuple[int, int]] = []
        num_sampled = num_gold = 0
        for begin in range(end - 1, -1, -1):
            item = everything[begin]
            num_sampled, num_gold = num_sampled + ("distillation" in item.roles), num_gold + ("sft" in item.roles)
            padded = (end - begin) * len(item.sequence.token_ids)
            is_full = padded > cost.most if size is None else max(num_sampled, num_gold) > size
            if is_full and begin < end - 1:
                break
            options.append((best[begin][0] + padded + cost.start, begin))
        best.append(min(options))  # of equals the one with the larger last group
    groups = []
    end = len(everything)
    while end:
        begin = best[end][1]
        groups.append(everything[begin:end])
        end = begin
    return groups[::-1]
