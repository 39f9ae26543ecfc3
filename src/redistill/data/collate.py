"""Collation of sequences into a padded batch with the positions of its targets.

A target is a token that the student is trained to predict.  The hidden state that predicts a target is at the position before
the target.  Only this module makes this shift by one token.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from redistill.contracts import Batch, DrawItem, TokenSequence
from redistill.losses.span import SpanConfig, counted_spans, pair_weights
from redistill.tensors import pad


def collate(
    items: Sequence[DrawItem],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    span_config: SpanConfig | None = None,
    role: Literal["task", "pretraining"] = "task",
) -> Batch:
    """Collate sequences into one padded micro-batch.

    Sequences with the role "distillation" come first in the batch; the teacher processes only these.

    Args:
        items: Sequences with their roles.  The roles of a sequence state which terms of the objective use it.  If there are no
            items, the batch has one padding token and no target.
        pad_id: Token id that pads short sequences on the right; it is masked.
        device: Device of the tensors of the batch.
        span_config: Settings of the span loss (MGSR, Eq. 10). The loss compares pairs of neighbouring targets within a phrase,
            and the settings determine the weight of each pair. If None, all weights are 0.
        role: "pretraining" for a batch of the pre-training term of the objective; "task" for a batch of the other terms.

    Returns:
        The batch.  Tensors with the suffix _N have one element for each target.  The targets are in the order of the sequences
        in the batch.
    """
    ordered = sorted(items, key=lambda item: "distillation" not in item.roles)
    sequences = [item.sequence for item in ordered]
    sampled = [item.sequence for item in ordered if "distillation" in item.roles]
    input_ids_BT, attention_mask_BT = pad([sequence.token_ids for sequence in sequences] or [(pad_id,)], pad_id)
    supervised_BT, _ = pad([sequence.supervised for sequence in sequences] or [(False,)], 0)
    sequence_N, token_N = supervised_BT.nonzero(as_tuple=True)
    weights = [] if span_config is None else [pair_weights(s.spans, s.num_targets, span_config) for s in sampled]
    unweighted = torch.zeros(len(sequence_N) - sum(map(len, weights)))
    return Batch(
        input_ids_BT=input_ids_BT.to(device),
        attention_mask_BT=attention_mask_BT.to(device),
        position_N=(sequence_N * input_ids_BT.shape[1] + token_N - 1).to(device),
        target_N=input_ids_BT[sequence_N, token_N].to(device),
        sequence_N=sequence_N.to(device),
        sft_N=torch.tensor(["sft" in item.roles for item in ordered], dtype=torch.bool)[sequence_N].to(device),
        pair_weight_N=torch.cat([*weights, unweighted]).to(device),
        num_sampled=len(sampled),
        num_sampled_rows=sum(sequence.num_targets for sequence in sampled),
        num_sft_rows=sum(item.sequence.num_targets for item in ordered if "sft" in item.roles),
        num_span_samples=0 if span_config is None else sum(bool(counted_spans(s.spans, span_config)) for s in sampled),
        role=role,
        sequence_weight_N=torch.tensor([1 / sequence.num_targets for sequence in sequences])[sequence_N].to(device),
        old_logprob_N=_rollout_rows(sampled, "old_logprobs").to(device),
        advantage_N=_rollout_rows(sampled, "advantages").to(device),
        importance_N=_rollout_rows(sampled, "importances").to(device),
        token_weight_N=torch.tensor(
            [weight for sequence in sampled for weight in sequence.target_weights], dtype=torch.float32
        ).to(device),
        token_ids=tuple(sequence.token_ids for sequence in sequences),
        samples=tuple(sequence.sample for sequence in sequences),
        origins=tuple(sequence.origin for sequence in sequences),
        phrases=() if span_config is None else _phrases(sampled, span_config),
    )


def empty_batch(*, pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Return a micro-batch of one padding token and no target.

    The batch adds zero to every sum and gradient.  If all processes of a job must make the same number of forward passes, a
    process with fewer micro-batches adds empty ones.
    """
    return collate((), pad_id=pad_id, device=device)


def _phrases(sampled: Sequence[TokenSequence], span_config: SpanConfig) -> tuple[tuple[int, int, float], ...]:
    """Return the spans that the span loss uses, in the form of `Batch.phrases`.

    Each span is a tuple (first, stop, weight).  [first, stop) is a half-open range of indices of the batch's targets.
    """
    found: list[tuple[int, int, float]] = []
    first = 0
    for sequence in sampled:
        counted = counted_spans(sequence.spans, span_config)
        found += [(first + start, first + stop, 1 / len(counted)) for start, stop in counted]
        first += sequence.num_targets
    return tuple(found)


def _rollout_rows(sampled: Sequence[TokenSequence], name: str) -> torch.Tensor:
    """Return one field of the roll-outs of all sequences, as a float32 tensor [N].

    A roll-out contains the values that the policy gradient needs for each target.  `name` is the name of the field, such as
    "advantages".  The tensor has one value for each target; the value is 0 if the sequence has no roll-out.
    """
    values: list[float] = []
    for sequence in sampled:
        values += [0.0] * sequence.num_targets if sequence.rollout is None else getattr(sequence.rollout, name)
    assert len(values) == sum(sequence.num_targets for sequence in sampled), "a roll-out must have one value per target"
    return torch.tensor(values, dtype=torch.float32)
