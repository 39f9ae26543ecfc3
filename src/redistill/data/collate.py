"""Sequences into one padded batch with its supervised rows: the shift by one is made here and nowhere else."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch

from redistill.contracts import Batch, TokenSequence
from redistill.losses.span import SpanConfig, counted_spans, pair_weights
from redistill.tensors import pad


def collate(
    gold: Sequence[TokenSequence],
    sampled: Sequence[TokenSequence],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    span_config: SpanConfig | None = None,
    role: Literal["task", "pretraining"] = "task",
) -> Batch:
    """One micro-batch of gold sequences (SFT term) and sampled ones (distillation terms).

    A sequence that is in both lists, as the same object, is read once and its rows carry both.  Sampled sequences come
    first, so that the teacher reads a prefix of the batch.

    Args:
        gold: Sequences whose targets count in the SFT term.
        sampled: Sequences whose targets count in the distillation terms.
        pad_id: Fills the right of short sequences; never looked at.
        span_config: How Eq. 10 weighs a pair; None leaves all pair weights 0.
        role: Which terms read the batch; see `contracts.Batch`.
    """
    everything = joined(gold, sampled)
    assert everything, "a batch needs a sequence"
    sequences = [sequence for sequence, _, _ in everything]
    input_ids_BT, attention_mask_BT = pad([sequence.token_ids for sequence in sequences], pad_id)
    supervised_BT, _ = pad([sequence.supervised for sequence in sequences], 0)
    sequence_N, token_N = supervised_BT.nonzero(as_tuple=True)
    width = input_ids_BT.shape[1]
    sft_B = torch.tensor([is_gold for _, _, is_gold in everything])
    weights = [
        torch.zeros(sequence.num_targets)
        if span_config is None or b >= len(sampled)
        else pair_weights(sequence.spans, sequence.num_targets, span_config)
        for b, sequence in enumerate(sequences)
    ]
    return Batch(
        input_ids_BT=input_ids_BT.to(device),
        attention_mask_BT=attention_mask_BT.to(device),
        position_N=(sequence_N * width + token_N - 1).to(device),
        target_N=input_ids_BT[sequence_N, token_N].to(device),
        sequence_N=sequence_N.to(device),
        sft_N=sft_B[sequence_N].to(device),
        pair_weight_N=torch.cat(weights).to(device),
        num_sampled=len(sampled),
        num_sampled_rows=sum(sequence.num_targets for sequence in sampled),
        num_span_samples=0 if span_config is None else sum(bool(counted_spans(s.spans, span_config)) for s in sampled),
        role=role,
        sequence_weight_N=torch.tensor([1 / sequence.num_targets for sequence in sequences])[sequence_N].to(device),
        old_logprob_N=_rollout_rows(sampled, "old_logprobs").to(device),
        advantage_N=_rollout_rows(sampled, "advantages").to(device),
        importance_N=_rollout_rows(sampled, "importances").to(device),
        samples=tuple(sequence.sample for sequence in sequences),
        origins=tuple(sequence.origin for sequence in sequences),
    )


def joined(gold: Sequence[TokenSequence], sampled: Sequence[TokenSequence]) -> list[tuple[TokenSequence, bool, bool]]:
    """Each sequence once, whether it is sampled, and whether it is gold; sampled ones first.

    The same object in both lists is one sequence; the same object twice in one of them is two.
    """
    wanted = Counter(id(sequence) for sequence in gold)  # counted, since a batch over two epochs may hold a sample twice
    found = [(sequence, True, _take(wanted, sequence)) for sequence in sampled]
    return found + [(sequence, False, True) for sequence in gold if _take(wanted, sequence)]


def _take(wanted: Counter[int], sequence: TokenSequence) -> bool:
    """Whether one more of this very object is wanted; if so, one fewer is from now on."""
    is_wanted = wanted[id(sequence)] > 0
    wanted[id(sequence)] -= is_wanted
    return is_wanted


def _rollout_rows(sampled: Sequence[TokenSequence], name: str) -> torch.Tensor:
    """One field of the roll-outs by row, zeros for a sequence without one."""
    values: list[float] = []
    for sequence in sampled:
        values += [0.0] * sequence.num_targets if sequence.rollout is None else getattr(sequence.rollout, name)
    assert len(values) == sum(sequence.num_targets for sequence in sampled), "a roll-out has a number for each target"
    return torch.tensor(values, dtype=torch.float32)
