"""Text generation by a model of this process, with a random stream per sequence.

Each sequence has its own stream of random numbers.  The stream is divided into groups, and group t samples token t
(`sample_rows`).  A response therefore does not depend on its batch, on the order of the requests, or on the number of
processes.  The only exception is rounding: another batch changes the last bits of floating-point sums, and very rarely
changes a token.

With a teacher, student and teacher read the same tokens, each with its own KV cache.  There are two modes.  In the first,
tokens are sampled from a mixture of both distributions.  In the second, tokens are sampled from the student, and a token
that the teacher ranks low is replaced by a token of the teacher.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from redistill import randomness
from redistill.contracts import TEMPERATURES, Generation, GenerationRequest, Sampling, is_temperature
from redistill.errors import ConfigError
from redistill.generation.decoder import Decoder
from redistill.generation.ngrams import NgramBan
from redistill.generation.prefix import PrefixMemory
from redistill.models.families import position_limit
from redistill.models.static_cache import StaticBodies
from redistill.processes import signals
from redistill.tensors import pad
from redistill.vocab_pass import NUMBERS_PER_DRAW, check_sampled, nucleus, sample_rows

# Rows that have ended are removed from the cache if at most this fraction of its rows remains.  Removing rows reads about as
# much memory as two decoding steps, so several rows are removed at once.
COMPACT_BELOW = 0.75


def generate(
    model: nn.Module,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    vocabulary: int | None = None,
    teacher: nn.Module | None = None,
    memory: PrefixMemory | None = None,
    static: StaticBodies | None = None,
) -> list[Generation]:
    r"""Continue every request with a model of this process.

    With a teacher, `Sampling` selects one of two modes.  In the first, tokens are sampled from a mixture of both models
    (MiniLLM, arXiv 2306.08543).  In the second, tokens are sampled from `model`, and the teacher replaces tokens that it
    ranks low (SKD, arXiv 2410.11325).

    Args:
        model: A causal language model.  It runs in eval mode without gradient; its previous mode is restored.
        requests: Sequences to continue, in any order; they are batched by length.
        sampling: Settings.  To the logits of each model, n-gram bans, temperature, top-k and top-p are applied, in this order.
        end_ids: End tokens.  A response ends with the first end token that is sampled, and includes this token.
        pad_id: Token id of padding.  All ids are valid, because the attention mask identifies padding.
        batch_size: Sequences per batch.  `batch_size`, `memory` and `static` change results by rounding only.
        vocabulary: Only token ids below this number are sampled; None allows all ids.
        teacher: The teacher, on the same device, with the same tokens below `vocabulary`.  It runs only if `sampling` uses it.
        memory: Stored states of texts that `model` has read with its present weights.  Prefixes in the memory are not read
            again, and generated texts are added to it.  If None, every prompt is read.
        static: KV caches of fixed size, which stay allocated.  If None, the caches grow with the text.

    Returns:
        A `Generation` for each request, in the order of the requests.  If `max_new_tokens` of a request is 0, its
        `Generation` has no tokens.

    Raises:
        ConfigError: a value is out of range; temperature 0 is used with tokens of the teacher; a sequence is too long.
        Interrupted: a signal has arrived; the text generated in this call is lost.
    """
    check_sampling(sampling)
    assert teacher is not None or not sampling.uses_teacher, "text with tokens of the teacher needs a teacher"
    models = [model] if teacher is None or not sampling.uses_teacher else [model, teacher]
    for each in models:
        _check_lengths(requests, position_limit(each))
    decoders = [Decoder(each, vocabulary, memory if each is model else None, static) for each in models]
    assert len({each.num_classes for each in decoders}) == 1, "the numbers of classes differ; pass a common vocabulary"
    order = [i for i, request in enumerate(requests) if request.max_new_tokens > 0]
    order.sort(key=lambda i: _tokens_to_read(requests[i], memory), reverse=True)
    results = [Generation(token_ids=(), finished=False)] * len(requests)
    with ExitStack() as prepared:
        for decoder in decoders:
            prepared.enter_context(decoder.prepared())
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _LiveBatch([requests[i] for i in rows], sampling, end_ids, pad_id, decoders[0].device)
            _generate_batch(decoders, batch, sampling)
            for i, generation in zip(rows, batch.generations(), strict=True):
                results[i] = generation
    return results


def _tokens_to_read(request: GenerationRequest, memory: PrefixMemory | None) -> tuple[int, int, int]:
    """Return the key by which requests are sorted before they are batched.

    The key is (prompt tokens that are not in the memory, prompt tokens, `max_new_tokens`).
    """
    length = len(request.prompt_ids)
    known = 0 if memory is None else memory.recall(request.prompt_ids[:-1])[0]
    return length - known, length, request.max_new_tokens


def probabilities(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the distribution that a token is sampled from, for a temperature > 0.

    Args:
        logits_NV: Logits in float32; -inf for banned tokens.
        sampling: Settings of sampling.  Temperature is applied first.  Top-k keeps the k largest logits, and all logits equal
            to the smallest of these.  Top-p then keeps the smallest set of the most probable tokens whose total probability
            reaches `top_p`.

    Returns:
        probabilities_NV, in which each row sums to 1 and excluded tokens are exactly 0.
    """
    probabilities_NV = _softened(logits_NV, sampling).softmax(dim=-1)
    return nucleus(probabilities_NV, sampling.top_p) if sampling.top_p < 1.0 else probabilities_NV


def _softened(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the logits divided by the temperature; logits outside the top k are -inf.

    If neither temperature nor top-k has an effect, the function returns the input tensor itself.
    """
    if sampling.temperature != 1.0:
        logits_NV = logits_NV / sampling.temperature
    if 0 < sampling.top_k < logits_NV.shape[-1]:
        kth_N1 = logits_NV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    return logits_NV


def _masses(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the result of `probabilities`, but without normalised rows.

    Each row is proportional to the probabilities; `sample_rows` does not need normalised rows.  This function may overwrite
    the logits.
    """
    if sampling.top_p < 1.0:
        return probabilities(logits_NV, sampling)
    softened_NV = _softened(logits_NV, sampling)
    return softened_NV.sub_(softened_NV.amax(dim=-1, keepdim=True)).exp_()


def _generate_batch(decoders: Sequence[Decoder], batch: "_LiveBatch", sampling: Sampling) -> None:
    """Generate tokens until every sequence has ended; the tokens are added to `batch`."""
    for decoder in decoders:
        decoder.start(batch.prompts, batch.longest)
    # Checking which rows are active synchronises with a GPU, so it is not done after every token.
    check_every = 1 if decoders[0].device.type == "cpu" else 8
    for step in range(batch.longest):
        signals.poll()
        logits = [batch.ban(decoder.logits(*batch.columns(step))) for decoder in decoders]
        active_L = batch.accept(_next_tokens(logits, sampling, batch.uniform_LTK[:, step]), step)
        if step + 1 == batch.longest or (step + 1) % check_every:
            continue
        kept = active_L.nonzero().flatten()
        if len(kept) == 0:
            break
        if len(kept) <= COMPACT_BELOW * len(active_L):
            _remember(decoders, batch, ~active_L)
            for decoder in decoders:
                decoder.select(kept)
            batch.select(kept)
    _remember(decoders, batch, torch.ones_like(active_L))


def _remember(decoders: Sequence[Decoder], batch: "_LiveBatch", removed_L: torch.Tensor) -> None:
    """Store the states of some texts in the prefix memories of the decoders.

    `removed_L` is True for the rows whose texts are stored; these rows are removed from the batch.  The last token of a
    text is excluded, because no model has read this token.
    """
    for decoder in decoders:
        if decoder.remembers:
            for live, text, start in batch.texts(removed_L.nonzero().flatten()):
                decoder.remember(live, text, start)


def _next_tokens(logits: Sequence[torch.Tensor], sampling: Sampling, uniform_LK: torch.Tensor) -> torch.Tensor:
    """Return the next token of each row, token_L.

    `logits` contains the logits of one model, or of student and teacher; this function may overwrite them.  At temperature 0
    the token is the arg max.  With one model, the token is sampled from its distribution.  With two models and
    `sampling.teacher_top_k` = 0, the token is sampled from their mixture.  Otherwise, the first half of `uniform_LK` samples
    the student's token, and the second half samples the teacher's token.  The teacher's token is used if the teacher ranks
    the student's token low.
    """
    if sampling.temperature == 0:
        return logits[0].argmax(dim=-1)
    if len(logits) == 1:
        return sample_rows(_masses(logits[0], sampling), uniform_LK)
    if sampling.teacher_top_k:
        own_L = sample_rows(probabilities(logits[0], sampling), uniform_LK[:, :NUMBERS_PER_DRAW])
        teachers_L = sample_rows(probabilities(logits[1], sampling), uniform_LK[:, NUMBERS_PER_DRAW:])
        num_above_L = (logits[1] > logits[1].gather(1, own_L.clamp(min=0)[:, None])).sum(dim=-1)
        return torch.where((num_above_L < sampling.teacher_top_k) | (own_L < 0), own_L, teachers_L)
    student_LV, teacher_LV = (probabilities(each_LV, sampling) for each_LV in logits)
    mixed_LV = (1.0 - sampling.teacher_share) * student_LV + sampling.teacher_share * teacher_LV
    return sample_rows(mixed_LV, uniform_LK)


class _LiveBatch:
    """The state of a batch of B sequences (rows) during generation.

    A row is active until its sequence ends.  Removing rows from the KV cache is slow, so ended rows are removed several at
    a time.  The live rows are the L rows that are still in the cache.  Tokens that are sampled for an ended row are
    ignored.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        end_ids: Sequence[int],
        pad_id: int,
        device: torch.device,
    ) -> None:
        budgets = [request.max_new_tokens for request in requests]
        self.longest = max(budgets)
        count = NUMBERS_PER_DRAW * (2 if sampling.teacher_top_k else 1)  # per token; the second half is for a replacement
        uniform = np.zeros((len(requests), self.longest, count))
        for row, request in zip(uniform, requests):
            numbers = randomness.generator(request.seed, str(request.stream[0]), *request.stream[1:])
            skipped, stop = request.skipped_tokens, request.skipped_tokens + request.max_new_tokens
            row[: request.max_new_tokens] = numbers.random((stop, count))[skipped:]
        self.prompts = [request.prompt_ids for request in requests]
        ids_LT, mask_LT = pad(self.prompts, pad_id, side="left")
        self._prompt_length = ids_LT.shape[1]
        self._ids_LT = torch.cat([ids_LT, ids_LT.new_zeros((len(requests), self.longest))], dim=1).to(device)
        self._mask_LT = torch.cat([mask_LT, mask_LT.new_ones((len(requests), self.longest))], dim=1).to(device)
        self._position_LT = (self._mask_LT.cumsum(dim=1) - 1).clamp(min=0)
        self.uniform_LTK = torch.from_numpy(uniform).to(device)
        self._end_ids = torch.tensor(tuple(end_ids), dtype=torch.long, device=device)
        self._live_L = torch.arange(len(requests), device=device)
        self._active_L = torch.ones(len(requests), dtype=torch.bool, device=device)
        self._budget_L = torch.tensor(budgets, device=device)
        self._length_B = torch.zeros(len(requests), dtype=torch.long, device=device)
        self._finished_B = torch.zeros(len(requests), dtype=torch.bool, device=device)
        self._generated_BT = torch.zeros((len(requests), self.longest), dtype=torch.long, device=device)
        self._live = list(range(len(requests)))  # `_live_L` on the host, for the ban of n-grams
        self._ngrams = NgramBan(sampling.no_repeat_ngram, self.prompts) if sampling.no_repeat_ngram else None

    def columns(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return token ids, attention mask and position ids of the columns so far.

        These are the columns of the prompts and of the first `step` generated tokens.
        """
        filled = self._prompt_length + step
        return self._ids_LT[:, :filled], self._mask_LT[:, :filled], self._position_LT[:, :filled]

    def accept(self, token_L: torch.Tensor, step: int) -> torch.Tensor:
        """Append the sampled tokens to the active rows in place.

        Returns:
            active_L, which is True for the rows that are still active.
        """
        ends_L = self._active_L & torch.isin(token_L, self._end_ids)
        self._generated_BT[self._live_L, step] = token_L  # tokens beyond a row's length are ignored
        self._length_B[self._live_L] += self._active_L
        self._finished_B[self._live_L] |= ends_L
        if self._ngrams is not None:
            pairs = torch.stack([token_L, self._active_L.to(token_L)], dim=1).tolist()  # one copy to the host
            for row, (token, is_active) in zip(self._live, pairs, strict=True):
                if is_active:
                    self._ngrams.push(row, token)
        self._active_L = self._active_L & ~ends_L & (self._budget_L > step + 1)
        column = self._prompt_length + step
        self._ids_LT[:, column] = token_L.clamp(min=0)  # a token that could not be sampled is negative
        # Positions of ended rows do not increase, since they must not exceed the last position that has an embedding.
        self._position_LT[:, column] = self._position_LT[:, column - 1] + self._active_L
        return self._active_L

    def texts(self, live: torch.Tensor) -> list[tuple[int, tuple[int, ...], int]]:
        """Return the texts of some rows of the KV cache, for the prefix memory.

        Args:
            live: Indices of the rows in the KV cache.

        Returns:
            For each row: its index in the KV cache; the token ids of prompt and response, without the last token; and the index
            of the column that contains the first token.
        """
        rows = self._live_L[live]
        numbers = torch.stack([live, rows, self._length_B[rows]], dim=1)
        return [
            (index, self.prompts[row] + tuple(tokens[: length - 1]), self._prompt_length - len(self.prompts[row]))
            for index, row, length, *tokens in torch.cat(
                [numbers, self._generated_BT[rows]], dim=1
            ).tolist()  # one copy to the host
        ]

    def ban(self, logits_LV: torch.Tensor) -> torch.Tensor:
        """Set the logits of banned tokens to -inf in place; return the logits."""
        if self._ngrams is None:
            return logits_LV
        size = logits_LV.shape[1]
        banned = [(live, token) for live, row in enumerate(self._live) for token in self._ngrams.banned(row) if token < size]
        if banned:
            live_K, token_K = torch.tensor(banned, device=logits_LV.device).unbind(1)  # one copy to the device
            logits_LV[live_K, token_K] = -torch.inf
        return logits_LV

    def select(self, kept: torch.Tensor) -> None:
        """Keep only those live rows whose indices are in `kept`."""
        for name in ("_ids_LT", "_mask_LT", "_position_LT", "uniform_LTK", "_live_L", "_active_L", "_budget_L"):
            setattr(self, name, getattr(self, name)[kept])
        if self._ngrams is not None:
            self._live = self._live_L.tolist()

    def generations(self) -> list[Generation]:
        """Return the generated texts.

        Raises:
            TrainingError: a token could not be sampled.
        """
        numbers = torch.stack([self._length_B, self._finished_B.long()], dim=1)
        rows = torch.cat([numbers, self._generated_BT], dim=1).tolist()  # one copy to the host
        check_sampled(min(min(tokens[:length], default=0) for length, _, *tokens in rows))
        return [Generation(token_ids=tuple(tokens[:length]), finished=bool(finished)) for length, finished, *tokens in rows]


def check_sampling(sampling: Sampling) -> None:
    """Check that the settings of sampling are in range.

    Raises:
        ConfigError: a value is out of range; greedy decoding (temperature 0) is combined with tokens of the teacher; or a
            mixture with the teacher is combined with the replacement of tokens.
    """
    for name, value, good, allowed in (
        ("temperature", sampling.temperature, is_temperature(sampling.temperature), TEMPERATURES),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]; 1 keeps all"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, ">= 0; 0 keeps all"),
        ("no_repeat_ngram", sampling.no_repeat_ngram, sampling.no_repeat_ngram >= 0, ">= 0; 0 allows all"),
        ("teacher_share", sampling.teacher_share, 0 <= sampling.teacher_share <= 1, "in [0, 1]; MiniLLM uses 0.2"),
        ("teacher_top_k", sampling.teacher_top_k, sampling.teacher_top_k >= 0, ">= 0; SKD uses 25, 0 replaces no token"),
    ):
        if not good:
            raise ConfigError(f"sampling.{name} = {value}: must be {allowed}")
    if sampling.uses_teacher and sampling.temperature == 0:
        raise ConfigError("sampling.temperature = 0: must be > 0 for text with tokens of the teacher; 1 is usual")
    if sampling.teacher_share > 0 and sampling.teacher_top_k > 0:
        raise ConfigError("sampling.teacher_top_k: cannot be combined with teacher_share; set one of them to 0")


def _check_lengths(requests: Sequence[GenerationRequest], limit: int | None) -> None:
    for request in requests:
        assert request.prompt_ids, f"{request.stream}: the prompt is empty"
        length = len(request.prompt_ids) + request.max_new_tokens
        if limit is not None and length > limit:
            raise ConfigError(
                f"generation of {request.stream}: {len(request.prompt_ids)} prompt tokens + {request.max_new_tokens} new = "
                f"{length}: must be at most {limit}, the model's number of positions; "
                "shorten the prompt, or lower max_new_tokens"
            )
