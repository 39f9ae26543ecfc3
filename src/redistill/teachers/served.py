"""The served teacher, whose most probable classes come from a server.

The server has an OpenAI-compatible completions endpoint that supports `prompt_logprobs`; vLLM is an example.  For each row
(the prediction of one target), the server returns the `top_k` most probable classes.  All other classes together count as
one more class, with their total probability.  Probabilities are not renormalised.
"""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from redistill.contracts import (
    Batch,
    Generation,
    GenerationRequest,
    Sampling,
    TeacherCapabilities,
    TeacherTarget,
    TokenSequence,
    TopClasses,
)
from redistill.errors import ConfigError, OtherModelError, check_field
from redistill.interfaces import Tokenizer
from redistill.servers.client import Client, Reply, Report, Request
from redistill.servers.completions import Scores, checked, parse_scores, parse_text, scores_request, text_request
from redistill.servers.connection import check_settings, connection, destinations
from redistill.servers.repetition import Repetition
from redistill.teachers.probe import Probe, examine, mean_difference

MAX_TOP_K = 1024
LEAST_REST = 1e-10
"""Lower limit of the total probability of the classes that the server does not list, so that its logarithm is finite."""


@dataclass(frozen=True, kw_only=True)
class ServedTeacherConfig:
    """A teacher model on a server, such as vLLM.

    Training data are sent to the server: the prompts and the answers. A server that is not on this machine must be allowed by
    the option `--allow-host` of the command.

    Args:
        url: Address of the server, such as http://127.0.0.1:8000/v1; or a list of addresses of servers with the same model,
            over which the requests are distributed.
        model: Name of the model, as the server lists it.
        top_k: Number of most probable classes that are requested for each token, in [1, 1024]. The server must permit this
            number (vLLM: `--max-logprobs`).
        api_key_env: Name of the environment variable that contains the API key. If None, no key is sent.
        prompts_per_request: Maximum number of prompts in one request, >= 1.
        concurrent_requests: Maximum number of open requests of one process, >= 1.
        timeout_s: Seconds after which a request without a complete reply is tried again, > 0.
        patience_s: Seconds during which a failed request is tried again, >= 0. A server with another model is compared again
            for the same time. After this time the command ends; the same command resumes.
        tolerance: Largest accepted mean absolute difference of log-probabilities, in nats per token of a built-in text, >= 0.
            At the start and after each exchange, a server is compared with the first server's result at the start.
        price: Price of a million tokens, in any currency, >= 0. If set, run.json contains the price of all tokens that were
            sent or generated.

    Raises:
        ConfigError: a URL or a name is invalid, or a number is out of range.

    Example:
        >>> ServedTeacherConfig(url=("http://127.0.0.1:8000/v1",), model="gpt2-large", top_k=20).capabilities.top_k
        20
        >>> ServedTeacherConfig(url=("ftp://127.0.0.1",), model="gpt2-large")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: url = 'ftp://127.0.0.1': must be an http or https URL with a host,...
    """

    kind: ClassVar[str] = "served"

    url: tuple[str, ...]
    model: str
    top_k: int = 64
    api_key_env: str | None = None
    prompts_per_request: int = 8
    concurrent_requests: int = 8
    timeout_s: float = 600.0
    patience_s: float = 900.0
    tolerance: float = 0.05
    price: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, usual_concurrent=8)
        check_field(self, "top_k", 1 <= self.top_k <= MAX_TOP_K, f"must lie in [1, {MAX_TOP_K}]; 64 is usual")
        check_field(self, "prompts_per_request", 1 <= self.prompts_per_request <= 1024, "must lie in [1, 1024]; 8 is usual")
        check_field(self, "tolerance", 0 <= self.tolerance < math.inf, "must be >= 0 and finite")
        check_field(self, "price", self.price is None or 0 <= self.price < math.inf, "must be >= 0 and finite, or null")

    @property
    def capabilities(self) -> TeacherCapabilities:
        """The features of the teacher.

        The teacher provides the `top_k` most probable classes for any text, and generates text.
        """
        return TeacherCapabilities(full_vocabulary=False, generates=True, top_k=self.top_k)

    def connect(self, report: Report) -> Client:
        """Return a client of the servers, without sending a request.

        Args:
            report: Function that is called with one line when a request is tried again.

        Raises:
            ConfigError: a server is not allowed, or the variable of the API key is not set.
        """
        return connection(self, "teacher", report).client()

    def examine(self, client: Client, tokenizer: Tokenizer, max_tokens: int) -> Probe:
        """Test the servers; see `probe.examine`.

        Args:
            client: Client of the servers.
            tokenizer: The tokenizer of the student.
            max_tokens: Maximum number of tokens of prompt and answer together.
        """
        return examine(client, self.model, tokenizer, top_k=self.top_k, tolerance=self.tolerance, longest=max_tokens + 1)


class Count(Protocol):
    """Type of a function that counts requests, tokens sent and tokens generated."""

    def __call__(self, requests: int, tokens: int) -> None: ...


class _Stored(NamedTuple):
    """The most probable classes at each position of a sequence.

    The last position is excluded.  `TopClasses` describes the tensors.
    """

    class_TK: torch.Tensor
    logp_TK: torch.Tensor
    log_rest_T: torch.Tensor


class ServedTeacher:
    """A teacher that a server runs (contracts.TextTeacher).

    Args:
        settings: The teacher in the recipe.
        client: Client of the servers.
        probe: The first server's reply to the probe text at the start.
        vocabulary: Number of classes of the student; all token ids that a server lists must be below this number.
        end_ids: Tokens that end a text.
        device: Device of the batches.
        count_text: Function that is called with the number of tokens of generated text.
        count: Function that is called with the numbers of requests, and of tokens that were sent and generated.

    Raises:
        ConfigError: the student has at most `top_k` classes.
    """

    def __init__(
        self,
        settings: ServedTeacherConfig,
        client: Client,
        probe: Probe,
        *,
        vocabulary: int,
        end_ids: Sequence[int],
        device: torch.device | str,
        count_text: Callable[[int], None],
        count: Count,
    ) -> None:
        if settings.top_k >= vocabulary:
            raise ConfigError(f"teacher.top_k = {settings.top_k}: must be below the vocabulary size {vocabulary}; lower it")
        self.capabilities, self.probe = settings.capabilities, probe
        self._settings, self._client, self._vocabulary, self._end_ids = settings, client, vocabulary, tuple(end_ids)
        self._device, self._count_text, self._count = device, count_text, count
        self._stored: dict[tuple[int, ...], _Stored] = {}
        self._repetition = Repetition(settings.patience_s, client.report)

    @property
    def tolerance(self) -> float:
        """Mean difference of log-probabilities that is accepted as rounding, in nats."""
        return self._settings.tolerance

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Fetch the most probable classes at all positions of the sequences.

        Each request also contains the probe text, so that a server that was restarted with other weights is detected.  After
        an invalid reply, or a reply of another model, the request is repeated (see `Repetition`).

        Raises:
            ServerError: the replies to the first exchange of this process are invalid.
            ServerUnavailableError: a server cannot be reached or has another model, or a later exchange failed.
            Interrupted: a signal arrived.
        """
        wanted = list(dict.fromkeys(each.token_ids for each in sequences if each.token_ids not in self._stored))
        if wanted:
            self._stored |= self._repetition.run(partial(self._fetch, wanted), self._check)

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        """Return the function that returns the most probable classes of rows of the batch.

        Call `prepare` with the sequences of the batch first.
        """
        ids_BT, num_tokens = batch.input_ids_BT[: batch.num_sampled].tolist(), batch.input_ids_BT.shape[1]
        lengths = batch.attention_mask_BT[: batch.num_sampled].sum(dim=1).tolist()
        position_N = batch.position_N[: batch.num_sampled_rows].cpu()
        found = [self._stored[tuple(ids[:length])] for ids, length in zip(ids_BT, lengths, strict=True)]
        sequence_N, within_N = position_N // num_tokens, position_N % num_tokens
        start_B = torch.tensor([0, *(len(each.log_rest_T) for each in found)]).cumsum(0)
        index_N = start_B[sequence_N] + within_N
        columns = (torch.cat(column)[index_N].to(self._device) for column in zip(*found, strict=True))
        whole = TopClasses(*columns)
        return lambda rows: TopClasses(*(tensor[rows] for tensor in whole))

    def faults(self) -> int:
        """Return 0: replies with values that are not finite are rejected."""
        return 0

    def release(self) -> None:
        """Free the classes that were fetched for the current update."""
        self._stored.clear()

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the server's continuation of every request, in the order of the requests.

        Each continuation has a seed of its own. For the same seed, a server with the same software and batch size returns the
        same text.  After the texts, each server that sent one scores the probe text.  If a server has another model, its texts
        are discarded.  They are requested again when it has the original model (see `Repetition`).

        Raises:
            ConfigError: `sampling` bans n-grams or mixes models, which a served teacher cannot do.
            ServerError: the replies to the first exchange of this process are invalid.
            ServerUnavailableError: a server cannot be reached or has another model, or a later exchange failed.
            Interrupted: a signal arrived.
        """
        if sampling.no_repeat_ngram or sampling.uses_teacher:
            raise ConfigError("teacher.kind = 'served': cannot ban n-grams or sample from mixtures; use a local teacher")
        if not requests:
            return []
        texts = self._repetition.run(partial(self._continuations, requests, sampling), self._check)
        self._count_text(sum(len(text.token_ids) for text in texts))
        return texts

    def _fetch(self, wanted: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], _Stored]:
        """Return the most probable classes, from servers with the original model."""
        size, settings, found = self._settings.prompts_per_request, self._settings, dict[tuple[int, ...], _Stored]()
        parts = [[*wanted[start : start + size], self.probe.token_ids] for start in range(0, len(wanted), size)]
        requests = [
            scores_request(settings.model, part, top_k=settings.top_k, server=number) for number, part in enumerate(parts)
        ]
        replies = self._exchange(requests, sum(len(prompt) for part in parts for prompt in part))
        for part, reply in zip(parts, replies, strict=True):
            with checked(reply) as value:
                *scores, probe = parse_scores(value, part, top_k=settings.top_k, vocabulary=self._vocabulary)
            self._verify(probe, reply.server)
            found |= {ids: _stored(each) for ids, each in zip(part, scores)}
        return found

    def _continuations(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the continuations of prompts, from servers with the original model."""
        sent = [
            text_request(self._settings.model, request, sampling, self._end_ids, server)
            for server, request in enumerate(requests)
        ]
        replies = self._exchange(sent, sum(len(request.prompt_ids) for request in requests))
        texts = list[Generation]()
        for request, reply in zip(requests, replies, strict=True):
            with checked(reply) as value:
                texts.append(parse_text(value, request, self._end_ids, self._vocabulary))
        self._count(0, sum(len(text.token_ids) for text in texts))
        self._check({reply.server for reply in replies})
        return texts

    def _check(self, labels: Set[str] | None = None) -> None:
        """Compare servers with the original model.

        All servers are compared if `labels` is None, and otherwise those with these labels.

        Raises:
            ServerError: a server has another model, or its reply is invalid.
            ServerUnavailableError: a server cannot be reached.
        """
        text, top_k = self.probe.token_ids, self._settings.top_k
        numbers = [n for n, server in enumerate(self._client.servers) if labels is None or server.label in labels]
        requests = [scores_request(self._settings.model, [text], top_k=top_k, server=n, is_pinned=True) for n in numbers]
        for reply in self._exchange(requests, len(text) * len(requests)):
            with checked(reply) as value:
                (scores,) = parse_scores(value, [text], top_k=top_k, vocabulary=self._vocabulary)
            self._verify(scores, reply.server)

    def _exchange(self, requests: Sequence[Request], num_tokens: int) -> list[Reply]:
        """Send requests with `num_tokens` tokens in total; count attempts and tokens."""
        before = self._client.num_attempts
        replies = self._client.exchange(requests)
        self._count(self._client.num_attempts - before, num_tokens)
        return replies

    def _verify(self, scores: Scores, server: str) -> None:
        """Raise an OtherModelError if a server has other weights than at the start."""
        difference = mean_difference(tuple(scores.own_T), self.probe.logprobs)
        if difference > self.tolerance:
            raise OtherModelError(
                f"{server}: the model has changed since the start: its log-probabilities of the probe text differ by "
                f"{difference:.3g} nats per token (teacher.tolerance {self.tolerance:g}); serve the original model"
            )


def _stored(scores: Scores) -> _Stored:
    mass_T = np.exp(scores.logp_TK).sum(axis=1)
    log_rest_T = np.log(np.maximum(1 - mass_T, LEAST_REST))
    return _Stored(
        torch.from_numpy(scores.class_TK), torch.from_numpy(scores.logp_TK).float(), torch.from_numpy(log_rest_T).float()
    )


def announcement(settings: ServedTeacherConfig) -> str:
    """Return one line about the data that are sent to the servers of a teacher.

    The line names the data, the servers, and the environment variable of the API key.
    """
    return f"teacher: training data (token ids of prompts and answers) {destinations(settings)}"
