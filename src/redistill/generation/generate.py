"""The only sampler: continues prompts, with randomness that belongs to the sequence and not to the batch.

The numbers that token t of a sequence is drawn with are the t-th few of its own stream; see `sample_rows`.  So a response does
not depend on which batch it fell into, on the order of the requests, or on the number of processes (but for the last bits of a
floating-point sum, which batches do change, and which hardly ever change a token).

A teacher may write along: both models read the same tokens, each with its own cache, and each token is drawn from the mixture
of what the two would write.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from redistill import randomness
from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.generation.decoder import Decoder
from redistill.generation.prefix import PrefixMemory
from redistill.models.families import position_limit
from redistill.processes import signals
from redistill.tensors import pad
from redistill.vocab_pass import NUMBERS_PER_DRAW, sample_rows

# Taking rows out of the cache costs about as much as two steps read of it, so some must go before it pays.
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
) -> list[Generation]:
    r"""Continue every request with a model of this process.

    With a teacher each token is drawn from a mixture (MiniLLM, arXiv 2306.08543, its teacher-mixed sampling):

    .. math:: y_t \sim (1 - a)\, q(\cdot \mid y_{<t}) + a\, p(\cdot \mid y_{<t})

    where a is `sampling.teacher_share`, and bans, temperature, top-k and top-p have been applied to q and p each.

    Args:
        model: A causal language model; it writes in eval mode without gradient and gets its modes back.
        requests: Sequences to continue, in any order; they are batched by length.
        sampling: How a token is drawn.  Bans come first, then temperature, top-k and top-p, as in transformers.
        end_ids: A row stops at any of these, which is the last of its tokens.
        pad_id: Any id; what is padding is told by the attention mask.
        batch_size: Rows at a time.  Larger is faster as long as the cache fits; results depend on it by rounding alone.
        vocabulary: Only this many leading classes are drawn (a padded head has rows that are no tokens); None for all.
        teacher: The other model of the mixture, on the same device; its first `vocabulary` classes are the student's.  It is
            not read where `sampling.teacher_share` is 0.
        memory: What `model` has read since its weights last changed.  Beginnings that it knows are not read again, and what is
            written goes into it; the text is the same but for rounding.  None reads every prompt.

    Returns:
        A `Generation` for each request, in their order; a budget of 0 gives no tokens.

    Raises:
        ConfigError: a value out of range, an arg max asked of a mixture, or a sequence longer than a model has positions.
        Interrupted: a signal has arrived; what was written in this call is lost.
    """
    check_sampling(sampling)
    models = _writers(model, teacher, sampling.teacher_share)
    for each, _ in models:
        _check_lengths(requests, position_limit(each))
    readers = [(Decoder(each, vocabulary, memory if each is model else None), share) for each, share in models]
    writer = _Writer(readers, sampling, end_ids=end_ids, pad_id=pad_id)
    order = _longest_first(requests, memory)
    results = [Generation(token_ids=(), finished=False)] * len(requests)
    with ExitStack() as prepared:
        for decoder, _ in readers:
            prepared.enter_context(decoder.prepared())
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for i, generation in zip(rows, writer.write([requests[i] for i in rows]), strict=True):
                results[i] = generation
    return results


def _writers(model: nn.Module, teacher: nn.Module | None, teacher_share: float) -> list[tuple[nn.Module, float]]:
    """Who writes, each with its share of the mixture."""
    if teacher_share == 0:
        return [(model, 1.0)]
    assert teacher is not None, "a share for no teacher"
    return [(model, 1.0 - teacher_share), (teacher, teacher_share)]


def _longest_first(requests: Sequence[GenerationRequest], memory: PrefixMemory | None) -> list[int]:
    """Which requests have something to write, those together that have as much to read."""
    order = [i for i, request in enumerate(requests) if request.max_new_tokens > 0]
    return sorted(order, key=lambda i: (_unread(requests[i], memory), requests[i].max_new_tokens), reverse=True)


def _unread(request: GenerationRequest, memory: PrefixMemory | None) -> tuple[int, int]:
    """What rows of one batch had better have in common: tokens to read before the first is written, and length."""
    length = len(request.prompt_ids)
    return length - (0 if memory is None else memory.recall(request.prompt_ids[:-1])[0]), length


def probabilities(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What a token is drawn from, at a temperature above 0.

    Args:
        logits_NV: float32; -inf where a class is banned.
        sampling: Temperature, then top-k (ties of the k-th stay), then the smallest top-p set of what is left.

    Returns:
        probabilities_NV, each row summing to 1; classes that were left out have exactly 0.
    """
    probabilities_NV = _softened(logits_NV, sampling).softmax(dim=-1)
    if sampling.top_p < 1.0:
        sorted_NV, class_NV = probabilities_NV.sort(dim=-1, descending=True, stable=True)
        before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
        kept_NV = sorted_NV.masked_fill(before_NV >= sampling.top_p, 0.0)
        probabilities_NV = torch.zeros_like(probabilities_NV).scatter(-1, class_NV, kept_NV)
        probabilities_NV = probabilities_NV / probabilities_NV.sum(dim=-1, keepdim=True)
    return probabilities_NV


def _softened(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The logits after temperature and top-k; the same ones where neither does anything."""
    if sampling.temperature != 1.0:
        logits_NV = logits_NV / sampling.temperature
    if 0 < sampling.top_k < logits_NV.shape[-1]:
        kth_N1 = logits_NV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, -torch.inf)
    return logits_NV


def _masses(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`probabilities` up to a factor for each row, which drawing does not need; the logits may be overwritten."""
    if sampling.top_p < 1.0:
        return probabilities(logits_NV, sampling)
    softened_NV = _softened(logits_NV, sampling)
    return softened_NV.sub_(softened_NV.amax(dim=-1, keepdim=True)).exp_()


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
    """Models, each with its share of the mixture, and all else that stays the same from batch to batch."""

    def __init__(
        self, readers: Sequence[tuple[Decoder, float]], sampling: Sampling, *, end_ids: Sequence[int], pad_id: int
    ) -> None:
        assert len({reader.num_classes for reader, _ in readers}) == 1, "a mixture needs one vocabulary; cut both heads to it"
        self._readers = readers
        self.device = readers[0][0].device
        self.sampling = sampling
        self.pad_id = pad_id
        self.end_ids = torch.tensor(tuple(end_ids), dtype=torch.long, device=self.device)
        # Asking a GPU which rows go on waits for it, so it is not asked after every token.
        self._ask_every = 1 if self.device.type == "cpu" else 8

    def write(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        batch = _LiveBatch(self, requests)
        known = [reader.start(batch.prompts) for reader, _ in self._readers]
        for step in range(batch.longest):
            signals.poll()
            going_L = batch.accept(self._next_tokens(batch, step, known), step)
            if step + 1 == batch.longest or (step + 1) % self._ask_every:
                continue
            kept = going_L.nonzero().flatten()
            if len(kept) == 0:
                break
            if len(kept) <= COMPACT_BELOW * len(going_L):
                self._remember(batch, (~going_L).nonzero().flatten())
                for reader, _ in self._readers:
                    reader.select(kept)
                batch.select(kept)
        self._remember(batch, torch.arange(batch.num_live, device=self.device))
        return batch.generations()

    def _remember(self, batch: "_LiveBatch", leaving: torch.Tensor) -> None:
        """Let memories keep the rows that leave the caches, but for each one's last token, which nobody has read."""
        for reader, _ in self._readers:
            if reader.remembers:
                for live, text, start in batch.texts(leaving):
                    reader.remember(live, text, start)

    def _next_tokens(self, batch: "_LiveBatch", step: int, known: Sequence[int]) -> torch.Tensor:
        logits = [batch.ban(reader.logits(*batch.columns(step, skipped))) for (reader, _), skipped in zip(self._readers, known)]
        if self.sampling.temperature == 0:
            (logits_LV,) = logits
            return logits_LV.argmax(dim=-1)
        if len(logits) == 1:
            masses_LV = _masses(logits[0], self.sampling)
        else:
            shares = [share for _, share in self._readers]
            mixed = [share * probabilities(each_LV, self.sampling) for share, each_LV in zip(shares, logits)]
            masses_LV = torch.stack(mixed).sum(dim=0)
        return sample_rows(masses_LV, batch.uniform_LTK[:, step])


class _LiveBatch:
    """The rows of one batch that are still in the cache (L of them) and what all its B rows have written.

    A row that has ended may stay among the live ones until enough have ended; what it writes then is dropped.
    """

    def __init__(self, writer: _Writer, requests: Sequence[GenerationRequest]) -> None:
        budgets = [request.max_new_tokens for request in requests]
        self.longest = max(budgets)
        uniform = np.zeros((len(requests), self.longest, NUMBERS_PER_DRAW))
        for row, request in zip(uniform, requests):
            numbers = randomness.generator(request.seed, *_key(request))
            row[: request.max_new_tokens] = numbers.random((request.max_new_tokens, NUMBERS_PER_DRAW))
        self.prompts = [request.prompt_ids for request in requests]
        ids_LT, mask_LT = pad(self.prompts, writer.pad_id, side="left")
        self._prompt_length = ids_LT.shape[1]
        self._input_LT = ids_LT.to(writer.device)
        self._mask_LT = torch.cat([mask_LT, mask_LT.new_ones((len(requests), self.longest))], dim=1).to(writer.device)
        self._position_LT = (mask_LT.cumsum(dim=1) - 1).clamp(min=0).to(writer.device)
        self.uniform_LTK = torch.from_numpy(uniform).to(writer.device)
        self._end_ids = writer.end_ids
        self._live_L = torch.arange(len(requests), device=writer.device)
        self._going_L = torch.ones(len(requests), dtype=torch.bool, device=writer.device)
        self._budget_L = torch.tensor(budgets, device=writer.device)
        self._length_B = torch.zeros(len(requests), dtype=torch.long, device=writer.device)
        self._finished_B = torch.zeros(len(requests), dtype=torch.bool, device=writer.device)
        self._written_BT = torch.zeros((len(requests), self.longest), dtype=torch.long, device=writer.device)
        size = writer.sampling.no_repeat_ngram
        self._ngrams = NgramBan(size, self.prompts) if size else None

    @property
    def num_live(self) -> int:
        return len(self._live_L)

    def columns(self, step: int, skipped: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is to be read before the token of `step`: ids, mask of all so far, positions; the first step may skip some."""
        first = skipped if step == 0 else 0
        mask_LT = self._mask_LT[:, : self._prompt_length + step]
        return self._input_LT[:, first:], mask_LT, self._position_LT[:, first:]

    def accept(self, token_L: torch.Tensor, step: int) -> torch.Tensor:
        """Write the tokens of the rows that go on, feed them back, and tell which rows go on after them."""
        ends_L = self._going_L & torch.isin(token_L, self._end_ids)
        self._written_BT[self._live_L, step] = token_L  # beyond a row's length it does not matter
        self._length_B[self._live_L] += self._going_L
        self._finished_B[self._live_L] |= ends_L
        if self._ngrams is not None:
            for row, token in zip(self._live_L[self._going_L].tolist(), token_L[self._going_L].tolist(), strict=True):
                self._ngrams.push(row, token)
        self._going_L = self._going_L & ~ends_L & (self._budget_L > step + 1)
        self._input_LT = token_L[:, None]
        # A row that has ended stands still: it must not run past the last position that has an embedding.
        self._position_LT = self._position_LT[:, -1:] + self._going_L[:, None]
        return self._going_L

    def texts(self, live: torch.Tensor) -> list[tuple[int, tuple[int, ...], int]]:
        """Of some live rows: which, prompt and response but for its last token, and the column that these start at."""
        rows = self._live_L[live]
        lists = (live.tolist(), rows.tolist(), self._length_B[rows].tolist(), self._written_BT[rows].tolist())
        return [
            (place, self.prompts[row] + tuple(tokens[: length - 1]), self._prompt_length - len(self.prompts[row]))
            for place, row, length, tokens in zip(*lists, strict=True)
        ]

    def ban(self, logits_LV: torch.Tensor) -> torch.Tensor:
        """The same logits with repeated n-grams ruled out, in place."""
        if self._ngrams is None:
            return logits_LV
        for live, row in enumerate(self._live_L.tolist()):
            banned = [token for token in self._ngrams.banned(row) if token < logits_LV.shape[1]]
            logits_LV[live, banned] = -torch.inf
        return logits_LV

    def select(self, kept: torch.Tensor) -> None:
        """Keep only these of the live rows."""
        for name in ("_input_LT", "_mask_LT", "_position_LT", "uniform_LTK", "_live_L", "_going_L", "_budget_L"):
            setattr(self, name, getattr(self, name)[kept])

    def generations(self) -> list[Generation]:
        rows = zip(self._written_BT.tolist(), self._length_B.tolist(), self._finished_B.tolist())
        return [Generation(token_ids=tuple(tokens[:length]), finished=finished) for tokens, length, finished in rows]


def _key(request: GenerationRequest) -> tuple[str, *tuple[int | str, ...]]:
    purpose, *counters = request.stream
    return str(purpose), *counters


def check_sampling(sampling: Sampling) -> None:
    """Reject values out of range.

    Raises:
        ConfigError: one is out of range, or an arg max is asked of a mixture.
    """
    for name, value, good, allowed in (
        ("temperature", sampling.temperature, 0 <= sampling.temperature < float("inf"), ">= 0; 0 takes the arg max"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]; 1 keeps all"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, ">= 0; 0 keeps all"),
        ("no_repeat_ngram", sampling.no_repeat_ngram, sampling.no_repeat_ngram >= 0, ">= 0; 0 allows all"),
        ("teacher_share", sampling.teacher_share, 0 <= sampling.teacher_share <= 1, "in [0, 1]; MiniLLM uses 0.2"),
    ):
        if not good:
            raise ConfigError(f"sampling.{name} = {value}: must be {allowed}")
    if sampling.teacher_share > 0 and sampling.temperature == 0:
        raise ConfigError("sampling.temperature = 0: a mixture with the teacher is sampled from; must be > 0")


def _check_lengths(requests: Sequence[GenerationRequest], limit: int | None) -> None:
    for request in requests:
        assert request.prompt_ids, f"{request.stream}: nothing to continue"
        length = len(request.prompt_ids) + request.max_new_tokens
        if limit is not None and length > limit:
            raise ConfigError(
                f"generation of {request.stream}: {len(request.prompt_ids)} prompt tokens + {request.max_new_tokens} new = "
                f"{length}, the model has {limit} positions; lower the prompt limit or max_new_tokens"
            )
