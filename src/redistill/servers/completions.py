"""Requests and replies of a completions endpoint, as OpenAI and vLLM define it.

A prompt is a list of token ids. The field `prompt_logprobs` requests the most probable tokens at each position of the prompt.
The field `return_token_ids` requests the ids of generated tokens. Every value of a reply is checked before it is used.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.errors import ServerError
from redistill.randomness import torch_seed
from redistill.records import Json
from redistill.servers.client import Reply, Request

ENTRY_BYTES = 400
"""Maximum mean size in bytes of a listed token in a reply, including its text."""
REPLY_BYTES = 1_000_000
"""Maximum size in bytes of the other parts of a reply."""
MAX_EXCESS = 1e-3
"""Tolerance for rounding: a sum of probabilities may exceed 1, and a log-probability 0, by this amount."""
NGRAM_FIELD = "no_repeat_ngram_size"
"""Argument of redistill's vLLM plugin: the length of the n-grams that must not be repeated."""
_ID = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
# Each setting for which a server may have its own default, for example from the model's generation_config.json.
_NEUTRAL: Mapping[str, Json] = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "stream": False,
    "echo": False,
    "add_special_tokens": False,
    "return_token_ids": True,
}


class InvalidReplyError(ValueError):
    """A reply does not have the form that its request asks for.

    The message states the reason and quotes no text of the server.
    """


@contextmanager
def checked(reply: Reply) -> Iterator[Json]:
    """Context that yields the value of a reply.

    An `InvalidReplyError` in the context becomes a ServerError that names the server.
    """
    try:
        yield reply.value
    except InvalidReplyError as error:
        raise ServerError(f"{reply.server}: invalid reply: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a server returns for the tokens of a prompt, except the first token.

    T is the number of these tokens.

    Args:
        class_TK: int64; the K most probable tokens at each position, in descending order of probability.
        logp_TK: float64; their log-probabilities, <= 0, normalised over the vocabulary of the server.
        own_T: float64; log-probability of the token that the prompt has at each position.
        texts: The text of the prompt's token at each position; None if the server does not return it.

    Example:
        >>> prompts, reply = [[5, 6]], {"choices": [{"index": 0, "prompt_logprobs": [None, {"6": {"logprob": -0.5}}]}]}
        >>> parse_scores(reply, prompts, top_k=1, vocabulary=8)[0].class_TK
        array([[6]])
    """

    class_TK: NDArray[np.int64]
    logp_TK: NDArray[np.float64]
    own_T: NDArray[np.float64]
    texts: tuple[str | None, ...]


def scores_request(
    model: str,
    prompts: Sequence[Sequence[int]] | str,
    *,
    top_k: int,
    server: int,
    is_pinned: bool = False,
    temperature: float = 1.0,
) -> Request:
    """Return the request for the most probable tokens at each position of prompts.

    Args:
        model: Name of the model.
        prompts: Token ids of each prompt, or a text that the server tokenises.
        top_k: Number of most probable tokens to return for each position.
        server: Index of the server.
        is_pinned: See `Request`.
        temperature: Sampling temperature.  The log-probabilities must not depend on it; `teachers.probe` checks this.
    """
    num_tokens = len(prompts) if isinstance(prompts, str) else sum(map(len, prompts))
    body: dict[str, Json] = {
        **_NEUTRAL,
        "model": model,
        "prompt": prompts if isinstance(prompts, str) else [list(prompt) for prompt in prompts],
        "temperature": temperature,
        "max_tokens": 1,
        "prompt_logprobs": top_k,
    }
    size = REPLY_BYTES + num_tokens * (top_k + 1) * ENTRY_BYTES
    return Request("/completions", body, size, server, is_pinned)


def parse_scores(reply: Json, prompts: Sequence[Sequence[int]], *, top_k: int, vocabulary: int) -> list[Scores]:
    """Return the scores of each prompt, in the order of the prompts.

    Raises:
        InvalidReplyError: a value is missing, has a wrong type, or is out of range.
    """
    found: dict[int, Scores] = {}
    for choice in _choices(reply, len(prompts)):
        index = _whole(choice.get("index"), len(prompts), "index")
        if index in found:
            raise InvalidReplyError(f"two choices have the index {index}")
        sent, listed = prompts[index], choice.get("prompt_logprobs")
        if (ids := choice.get("prompt_token_ids")) is not None and ids != list(sent):
            raise InvalidReplyError("prompt_token_ids differ from the token ids that were sent")
        if not isinstance(listed, list):
            raise InvalidReplyError("prompt_logprobs are missing; use a server with this field, such as vLLM")
        if len(listed) != len(sent):
            raise InvalidReplyError(f"prompt_logprobs has {len(listed)} positions for {len(sent)} tokens")
        if listed[0] is not None:
            raise InvalidReplyError("prompt_logprobs[0] is not null, although nothing precedes the first token")
        rows = [_row(row, token, top_k, vocabulary) for row, token in zip(listed[1:], sent[1:], strict=True)]
        found[index] = Scores(
            class_TK=np.array([row.classes for row in rows], dtype=np.int64).reshape(len(rows), top_k),
            logp_TK=np.array([row.logps for row in rows], dtype=np.float64).reshape(len(rows), top_k),
            own_T=np.array([row.own for row in rows], dtype=np.float64),
            texts=tuple(row.text for row in rows),
        )
    return [found[index] for index in range(len(prompts))]


@dataclass(frozen=True)
class _Row:
    """The scores of one position; see `Scores`."""

    classes: list[int]
    logps: list[float]
    own: float
    text: str | None


def _row(row: Json, token: int, top_k: int, vocabulary: int) -> _Row:
    """Return the scores of one position, at which the prompt has `token`.

    A server lists the `top_k` most probable tokens, and the prompt's own token if it is not one of them.
    """
    if not isinstance(row, dict):
        raise InvalidReplyError("a position of prompt_logprobs is not an object")
    if not top_k <= len(row) <= top_k + 1:
        raise InvalidReplyError(
            f"a position has {len(row)} tokens instead of {top_k}; start the server with --max-logprobs {top_k} or more, or "
            "lower top_k"
        )
    entries: dict[int, float] = {}
    for key, value in row.items():
        if not _ID.fullmatch(key) or int(key) >= vocabulary:
            raise InvalidReplyError(f"a listed token is not an id below {vocabulary}, the size of the student's vocabulary")
        entries[int(key)] = _logprob(value)
    if token not in entries:
        raise InvalidReplyError("a token of the prompt is not listed at its position")
    ordered = sorted(entries, key=lambda each: (-entries[each], each))[:top_k]
    logps = [entries[each] for each in ordered]
    if (mass := math.fsum(map(math.exp, logps))) > 1 + MAX_EXCESS:
        raise InvalidReplyError(f"the probabilities of a position sum to {mass:.4g}")
    if len(row) > top_k and token in ordered and entries[token] > min(entries.values()):
        raise InvalidReplyError(f"a position has {len(row)} tokens instead of {top_k}")
    own = row[str(token)]
    text = own.get("decoded_token") if isinstance(own, dict) else None
    return _Row(ordered, logps, entries[token], text if isinstance(text, str) else None)


def _logprob(value: Json) -> float:
    logprob = value.get("logprob") if isinstance(value, dict) else None
    if not isinstance(logprob, int | float) or isinstance(logprob, bool):
        raise InvalidReplyError("a log-probability is missing or not a number")
    if not -sys.float_info.max <= logprob <= MAX_EXCESS:
        raise InvalidReplyError("a log-probability is not finite, or is above 0")
    return min(float(logprob), 0.0)


# --- generated text -----------------------------------------------------------------------------------------------------


def text_request(
    model: str,
    request: GenerationRequest,
    sampling: Sampling,
    end_ids: Sequence[int],
    server: int,
    *,
    logprobs: bool = False,
) -> Request:
    """Return the request for the continuation of one prompt.

    Each prompt is sent in its own request, with its own seed.  A server would return equal texts for equal prompts in one
    request.

    Args:
        model: Name of the model.
        request: The prompt, the maximum number of tokens, and the key of the random numbers.
        sampling: How tokens are sampled.  It must not use tokens of a second model.  A ban of repeated n-grams is requested in
            an extra field. A server without redistill's plugin (`generation.vllm_plugin`) ignores this field.
        end_ids: Tokens that end a text.
        server: Index of the server.
        logprobs: Whether to request the log-probability of each generated token.
    """
    assert not sampling.uses_teacher, "declared by the capabilities of the teacher or engine"
    purpose, *counters = request.stream
    body: dict[str, Json] = {
        **_NEUTRAL,
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": torch_seed(request.seed, str(purpose), *counters) >> 32,  # 31 bits, which every server accepts
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,  # a text ends with the end tokens of the student, and with no others
    }
    if logprobs:
        body["logprobs"] = 0  # of the generated token only
    if sampling.no_repeat_ngram:
        body["vllm_xargs"] = {NGRAM_FIELD: sampling.no_repeat_ngram}
    num_tokens = len(request.prompt_ids) + request.max_new_tokens
    return Request("/completions", body, REPLY_BYTES + num_tokens * ENTRY_BYTES, server)


def parse_text(reply: Json, request: GenerationRequest, end_ids: Sequence[int], vocabulary: int) -> Generation:
    """Return the continuation of one prompt.

    Raises:
        InvalidReplyError: a value is missing, has a wrong type, or is out of range.
    """
    (choice,) = _choices(reply, 1)
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        raise InvalidReplyError("token_ids are missing; use a server with return_token_ids, such as vLLM 0.10.2 or later")
    if not 1 <= len(ids) <= request.max_new_tokens:
        raise InvalidReplyError(f"{len(ids)} token ids; must be 1 to {request.max_new_tokens}")
    tokens = tuple(_whole(token, vocabulary, "a token id") for token in ids)
    if any(token in end_ids for token in tokens[:-1]):
        raise InvalidReplyError("a text continues after its end token")
    finished = tokens[-1] in end_ids
    if not finished and len(tokens) < request.max_new_tokens:
        raise InvalidReplyError(f"a text of {len(tokens)} tokens has no end token, and is shorter than its limit")
    return Generation(token_ids=tokens, finished=finished)


def parse_text_logprobs(reply: Json, length: int) -> tuple[float, ...]:
    """Return the log-probability of each generated token in a reply with one text.

    Args:
        reply: The reply to a request with log-probabilities (see `text_request`).
        length: Number of generated tokens.

    Raises:
        InvalidReplyError: a log-probability is missing, not finite, or above 0.
    """
    (choice,) = _choices(reply, 1)
    found = choice.get("logprobs")
    listed = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) != length:
        raise InvalidReplyError("the log-probabilities of the generated tokens are missing")
    return tuple(_logprob({"logprob": each}) for each in listed)


def next_request(
    model: str, prompt: Sequence[int], *, top_k: int, server: int, extra: Mapping[str, Json] | None = None
) -> Request:
    """Return the request for the most probable tokens after a prompt.

    Unlike with `scores_request`, the server may use its prefix cache: stored states of a prefix of the prompt.

    Args:
        model: Name of the model.
        prompt: Token ids of the prompt.
        top_k: Number of most probable tokens that the server lists.
        server: Index of the server, to which all attempts are sent.
        extra: Further fields of the request.
    """
    body: dict[str, Json] = {
        **_NEUTRAL,
        "model": model,
        "prompt": list(prompt),
        "temperature": 0.0,
        "max_tokens": 1,
        "ignore_eos": True,
        "logprobs": top_k,
        "return_tokens_as_token_ids": True,
        **(extra or {}),
    }
    return Request("/completions", body, REPLY_BYTES + (len(prompt) + top_k + 2) * ENTRY_BYTES, server, is_pinned=True)


def parse_next(reply: Json, *, top_k: int, vocabulary: int) -> tuple[int, dict[int, float]]:
    """Parse the reply to a request of `next_request`.

    Returns:
        The generated token, and the log-probabilities in nats of the most probable tokens, by token id.

    Raises:
        InvalidReplyError: a value is missing, has a wrong type, or is out of range.
    """
    (choice,) = _choices(reply, 1)
    ids, found = choice.get("token_ids"), choice.get("logprobs")
    listed = found.get("top_logprobs") if isinstance(found, dict) else None
    if not isinstance(ids, list) or len(ids) != 1:
        raise InvalidReplyError("token_ids are missing; use a server with return_token_ids, such as vLLM")
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise InvalidReplyError("the log-probabilities of the most probable tokens are missing")
    entries: dict[int, float] = {}
    for key, value in listed[0].items():
        number = key.removeprefix("token_id:")
        if not _ID.fullmatch(number) or int(number) >= vocabulary:
            raise InvalidReplyError(f"a listed token is not an id below {vocabulary}, the size of the student's vocabulary")
        entries[int(number)] = _logprob({"logprob": value})
    if len(entries) < top_k:
        raise InvalidReplyError(
            f"{len(entries)} tokens are listed instead of {top_k}; start the server with --max-logprobs {top_k}"
        )
    return _whole(ids[0], vocabulary, "a token id"), entries


# --- other parts of replies ---------------------------------------------------------------------------------------------


def prompt_token_ids(reply: Json) -> list[int] | None:
    """Return the token ids of the only prompt of a request.

    The result is None if the server does not return them.

    Raises:
        InvalidReplyError: a value has a wrong type.
    """
    (choice,) = _choices(reply, 1)
    ids = choice.get("prompt_token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list):
        raise InvalidReplyError("prompt_token_ids are not a list")
    return [_whole(token, 2**31, "a token id") for token in ids]


def served_model(reply: Json, name: str) -> dict[str, str]:
    """Return what the list of models states about one model.

    The result has the id of the model, its root and its limit of tokens, if they are listed.

    Raises:
        InvalidReplyError: the list does not have the form that OpenAI defines, or lacks the model.
    """
    listed = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InvalidReplyError("the list of models does not have the form that OpenAI defines")
    found = next((each for each in listed if isinstance(each, dict) and each.get("id") == name), None)
    if found is None:
        raise InvalidReplyError("the model is not served; set model to one of the names that the server lists under /models")
    kept = {key: found[key] for key in ("id", "root", "max_model_len") if key in found}
    return {key: str(value)[:500] for key, value in kept.items() if isinstance(value, str | int)}


def _choices(reply: Json, number: int) -> list[dict[str, Json]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        raise InvalidReplyError("choices are missing")
    if len(choices) != number:
        raise InvalidReplyError(f"{len(choices)} choices for {number} prompts")
    found = [choice for choice in choices if isinstance(choice, dict)]
    if len(found) < number:
        raise InvalidReplyError("a choice is not an object")
    return found


def _whole(value: Json, limit: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise InvalidReplyError(f"{what} is not a whole number below {limit}")
    return value
