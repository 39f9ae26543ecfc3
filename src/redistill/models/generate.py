"""The only sampler: continues prompts, with randomness that belongs to the sequence and not to the batch.

Token t of a sequence is drawn with number t of its own stream, by inverse transform of its probabilities.  So a response does
not depend on which batch it fell into, on the order of the requests, or on the number of processes (but for the last bits of a
floating-point sum, which batches do change).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from redistill import randomness
from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.models.families import body_module, eval_mode, head, position_limit, text_config
from redistill.tensors import pad
from redistill.vocab_pass import Head, sample_rows

# Taking rows out of the cache costs about as much as two steps read of it, so some must go before it pays.
COMPACT_BELOW = 0.75


def generate(
    model: nn.Module,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    *,
    seed: int,
    end_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    vocabulary: int | None = None,
) -> list[Generation]:
    """Continue every request; with all but `requests` and `sampling` bound this is `contracts.Generate`.

    Args:
        model: A causal language model; it writes in eval mode without gradient and gets its modes back.
        requests: Sequences to continue, in any order; they are batched by length.
        sampling: How a token is drawn.  Bans come first, then temperature, top-k and top-p, as in transformers.
        seed: The run's seed; `request.stream` is the key below it.
        end_ids: A row stops at any of these, which is the last of its tokens.
        pad_id: Any id; what is padding is told by the attention mask.
        batch_size: Rows at a time.  Larger is faster as long as the cache fits; results do not depend on it.
        vocabulary: Only this many leading classes are drawn (a padded head has rows that are no tokens); None for all.

    Returns:
        A `Generation` for each request, in their order; a budget of 0 gives no tokens.

    Raises:
        ConfigError: a sampling value out of range, or a sequence longer than the model has positions.
    """
    _check_sampling(sampling)
    _check_lengths(requests, position_limit(model))
    writer = _Writer(model, sampling, seed=seed, end_ids=end_ids, pad_id=pad_id, vocabulary=vocabulary)
    order = [i for i, request in enumerate(requests) if request.max_new_tokens > 0]
    order.sort(key=lambda i: (len(requests[i].prompt_ids), requests[i].max_new_tokens), reverse=True)
    results = [Generation(token_ids=(), finished=False)] * len(requests)
    with eval_mode(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for i, generation in zip(rows, writer.write([requests[i] for i in rows]), strict=True):
                results[i] = generation
    return results


def probabilities(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What a token is drawn from, at a temperature above 0.

    Args:
        logits_NV: float32; -inf where a class is banned.
        sampling: Temperature, then top-k (ties of the k-th stay), then the smallest top-p set of what is left.

    Returns:
        probabilities_NV, each row summing to 1; classes that were left out have exactly 0.
    """
    logits_NV = logits_NV / sampling.temperature
    if 0 < sampling.top_k < logits_NV.shape[-1]:
        kth_N1 = logits_NV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    probabilities_NV = logits_NV.softmax(dim=-1)
    if sampling.top_p < 1.0:
        sorted_NV, class_NV = probabilities_NV.sort(dim=-1, descending=True, stable=True)
        before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
        kept_NV = sorted_NV.masked_fill(before_NV >= sampling.top_p, 0.0)
        probabilities_NV = torch.zeros_like(probabilities_NV).scatter(-1, class_NV, kept_NV)
        probabilities_NV = probabilities_NV / probabilities_NV.sum(dim=-1, keepdim=True)
    return probabilities_NV


class NgramBan:
    """Which token would repeat an n-gram of its row, kept up token by token.

    Prompt and response count alike, padding never does, as `NoRepeatNGramLogitsProcessor` does on unpadded rows.
    """

    def __init__(self, size: int, rows: Sequence[Sequence[int]]) -> None:
        self._size = size
        self._history: list[list[int]] = [[] for _ in rows]
        self._followers: list[dict[tuple[int, ...], list[int]]] = [{} for _ in rows]
        for row, tokens in enumerate(rows):
            for token in tokens:
                self.push(row, token)

    def push(self, row: int, token: int) -> None:
        """Note that `row` goes on with `token`."""
        if len(self._history[row]) >= self._size - 1:
            self._followers[row].setdefault(self._last(row), []).append(token)
        self._history[row].append(token)

    def banned(self, row: int) -> list[int]:
        """Tokens that `row` must not go on with."""
        return self._followers[row].get(self._last(row), [])

    def _last(self, row: int) -> tuple[int, ...]:
        history = self._history[row]
        return tuple(history[len(history) - self._size + 1 :])


class _Writer:
    """A model with all that stays the same from batch to batch."""

    def __init__(
        self, model: nn.Module, sampling: Sampling, *, seed: int, end_ids: Sequence[int], pad_id: int, vocabulary: int | None
    ) -> None:
        self._head: Head = head(model, vocabulary)
        self._head_is_prepared = False
        self.device = self._head.weight_VD.device
        self.sampling = sampling
        self.seed = seed
        self.pad_id = pad_id
        self.end_ids = torch.tensor(tuple(end_ids), dtype=torch.long, device=self.device)
        self._body = body_module(model)
        self._config = text_config(model)
        self._takes_positions = "position_ids" in inspect.signature(self._body.forward).parameters  # ALiBi families do not

    def write(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        batch = _LiveBatch(self, requests)
        cache = DynamicCache(config=self._config)
        step = 0
        while True:
            going = batch.accept(self._next_tokens(batch, cache, step), step)
            num_going = int(going.sum())
            if num_going == 0:
                return batch.generations()
            if num_going <= COMPACT_BELOW * len(going):
                kept = going.nonzero().flatten()
                cache.batch_select_indices(kept)
                batch.select(kept)
            step += 1

    def _next_tokens(self, batch: "_LiveBatch", cache: Any, step: int) -> torch.Tensor:
        positions = {"position_ids": batch.position_LT} if self._takes_positions else {}
        hidden_LTD = self._body(
            input_ids=batch.input_LT,
            attention_mask=batch.mask_LT[:, : batch.prompt_length + step],
            past_key_values=cache,
            use_cache=True,
            **positions,
        ).last_hidden_state
        hidden_LD = hidden_LTD[:, -1]
        if not self._head_is_prepared:  # only now is it known which dtype the body gives
            self._head, self._head_is_prepared = self._head.prepared(hidden_LD), True
        logits_LV = self._head.logits(hidden_LD)
        batch.ban(logits_LV)
        if self.sampling.temperature == 0:
            return logits_LV.argmax(dim=-1)
        return sample_rows(probabilities(logits_LV, self.sampling), batch.uniform_LT[:, step])


class _LiveBatch:
    """The rows of one batch that are still in the cache (L of them) and what all its B rows have written.

    A row that has ended may stay among the live ones until enough have ended; what it writes then is dropped.
    """

    def __init__(self, writer: _Writer, requests: Sequence[GenerationRequest]) -> None:
        budgets = [request.max_new_tokens for request in requests]
        longest = max(budgets)
        uniform = np.zeros((len(requests), longest))
        for row, request in zip(uniform, requests):
            row[: request.max_new_tokens] = randomness.generator(writer.seed, *_key(request)).random(request.max_new_tokens)
        ids_LT, mask_LT = pad([request.prompt_ids for request in requests], writer.pad_id, side="left")
        self.prompt_length = ids_LT.shape[1]
        self.input_LT = ids_LT.to(writer.device)
        self.mask_LT = torch.cat([mask_LT, mask_LT.new_ones((len(requests), longest))], dim=1).to(writer.device)
        self.position_LT = (mask_LT.cumsum(dim=1) - 1).clamp(min=0).to(writer.device)
        self.uniform_LT = torch.from_numpy(uniform).to(writer.device)
        self._end_ids = writer.end_ids
        self._live_L = torch.arange(len(requests), device=writer.device)
        self._going_L = torch.ones(len(requests), dtype=torch.bool, device=writer.device)
        self._budget_L = torch.tensor(budgets, device=writer.device)
        self._length_B = torch.zeros(len(requests), dtype=torch.long, device=writer.device)
        self._finished_B = torch.zeros(len(requests), dtype=torch.bool, device=writer.device)
        self._written_BT = torch.zeros((len(requests), longest), dtype=torch.long, device=writer.device)
        size = writer.sampling.no_repeat_ngram
        self._ngrams = NgramBan(size, [request.prompt_ids for request in requests]) if size else None

    def accept(self, token_L: torch.Tensor, step: int) -> torch.Tensor:
        """Write the tokens of the rows that go on, feed them back, and tell which rows go on after them."""
        written = self._live_L[self._going_L]
        ended_L = torch.isin(token_L, self._end_ids)
        self._written_BT[written, step] = token_L[self._going_L]
        self._length_B[written] = step + 1
        self._finished_B[written] = ended_L[self._going_L]
        if self._ngrams is not None:
            for row, token in zip(written.tolist(), token_L[self._going_L].tolist(), strict=True):
                self._ngrams.push(row, token)
        self._going_L = self._going_L & ~ended_L & (self._budget_L > step + 1)
        self.input_LT = token_L[:, None]
        # A row that has ended stands still: it must not run past the last position that has an embedding.
        self.position_LT = self.position_LT[:, -1:] + self._going_L[:, None]
        return self._going_L

    def ban(self, logits_LV: torch.Tensor) -> None:
        """Rule out repeated n-grams, in place."""
        if self._ngrams is None:
            return
        for live, row in enumerate(self._live_L.tolist()):
            banned = [token for token in self._ngrams.banned(row) if token < logits_LV.shape[1]]
            logits_LV[live, banned] = -torch.inf

    def select(self, kept: torch.Tensor) -> None:
        """Keep only these of the live rows."""
        for name in ("input_LT", "mask_LT", "position_LT", "uniform_LT", "_live_L", "_going_L", "_budget_L"):
            setattr(self, name, getattr(self, name)[kept])

    def generations(self) -> list[Generation]:
        rows = zip(self._written_BT.tolist(), self._length_B.tolist(), self._finished_B.tolist())
        return [Generation(token_ids=tuple(tokens[:length]), finished=finished) for tokens, length, finished in rows]


def _key(request: GenerationRequest) -> tuple[str, *tuple[int | str, ...]]:
    purpose, *counters = request.stream
    return str(purpose), *counters


def _check_sampling(sampling: Sampling) -> None:
    for name, value, good, allowed in (
        ("temperature", sampling.temperature, 0 <= sampling.temperature < float("inf"), ">= 0; 0 takes the arg max"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]; 1 keeps all"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, ">= 0; 0 keeps all"),
        ("no_repeat_ngram", sampling.no_repeat_ngram, sampling.no_repeat_ngram >= 0, ">= 0; 0 allows all"),
    ):
        if not good:
            raise ConfigError(f"sampling.{name} = {value}: must be {allowed}")


def _check_lengths(requests: Sequence[GenerationRequest], limit: int | None) -> None:
    for request in requests:
        assert request.prompt_ids, f"{request.stream}: nothing to continue"
        length = len(request.prompt_ids) + request.max_new_tokens
        if limit is not None and length > limit:
            raise ConfigError(
                f"generation of {request.stream}: {len(request.prompt_ids)} prompt tokens + {request.max_new_tokens} new = "
                f"{length}, the model has {limit} positions; lower the prompt limit or max_new_tokens"
            )
