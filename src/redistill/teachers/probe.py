"""The self-test of served teachers: model, tokenizer and log-probabilities.

The self-test runs before models are loaded.  A reply with status 200 does not prove that a server has the expected weights.
Therefore every server scores a short text, the probe text, before the run.  In every exchange of a run, the text is scored
again, and its log-probabilities are compared with the earlier ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redistill.errors import ConfigError, ServerError, ServerUnavailableError, VocabularyError
from redistill.interfaces import Tokenizer
from redistill.servers.client import Client, Request
from redistill.servers.completions import (
    REPLY_BYTES,
    Scores,
    checked,
    parse_scores,
    prompt_token_ids,
    scores_request,
    served_model,
)

TEXT = "The 3 foxes didn't sleep: naïve café, 北京.\n\tif x_1 == 42:\n        return f(x)  # done"
SAME_NATS = 1e-3  # maximum difference, due to rounding, between the log-probabilities at two temperatures
NUM_IDS = 16  # evenly spaced ids of the vocabulary whose texts are compared


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server returned for the probe text.

    Args:
        model: The model's entries "id", "root" and "max_model_len" in the list of models of the server.
        token_ids: Token ids of the probe text.
        logprobs: Log-probability of each token of the probe text after the first.
        untested: Labels of the servers whose tokenizer was not compared with that of the student, because they return neither
            token ids nor texts of tokens.
    """

    model: Mapping[str, str]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    untested: tuple[str, ...] = ()


def examine(client: Client, model: str, tokenizer: Tokenizer, *, top_k: int, tolerance: float, longest: int) -> Probe:
    """Test all servers of a teacher; return the first one's reply to the probe text.

    Args:
        client: Client of the servers.
        model: Name of the model.
        tokenizer: The tokenizer of the student.
        top_k: Number of most probable tokens that the run needs.
        tolerance: Mean absolute difference of log-probabilities, in nats, by which servers may differ.
        longest: Number of tokens of the longest prompt that the run sends.

    Raises:
        ConfigError: the model of a server has too few positions.
        ServerError: a server does not have the model, cannot list `top_k` tokens, or has other log-probabilities than the
            first server.
        ServerUnavailableError: a server cannot be reached.
        VocabularyError: a server has another tokenizer than the student.
    """
    token_ids = tuple(tokenizer.encode(TEXT, add_special_tokens=False))[: longest - 1]
    probes = [_examine(client, number, model, tokenizer, token_ids, top_k, longest) for number in range(len(client.servers))]
    for server, probe in zip(client.servers, probes, strict=True):
        if (difference := mean_difference(probe.logprobs, probes[0].logprobs)) > tolerance:
            raise ServerError(
                f"{server.label}: its log-probabilities differ by {difference:.3g} nats per token from those of "
                f"{client.servers[0].origin} (limit {tolerance:g}); serve the same model, or raise teacher.tolerance"
            )
    return replace(probes[0], untested=tuple(label for probe in probes for label in probe.untested))


def mean_difference(logprobs: Sequence[float], others: Sequence[float]) -> float:
    """Return the mean absolute difference of two lists of log-probabilities.

    If their lengths differ, the result is infinity.
    """
    if len(logprobs) != len(others):
        return float("inf")
    return float(np.abs(np.array(logprobs) - np.array(others)).mean()) if logprobs else 0.0


def _examine(
    client: Client, number: int, model: str, tokenizer: Tokenizer, token_ids: tuple[int, ...], top_k: int, longest: int
) -> Probe:
    """Test one server; return its reply to the probe text.

    `number` is the index of the server, and `token_ids` are those of the probe text.
    """
    listing = Request("/models", None, REPLY_BYTES, number, is_pinned=True)
    (reply,) = client.exchange([listing])
    with checked(reply) as value:
        found = served_model(value, model)
    limit = found.get("max_model_len", "")
    if limit.isdecimal() and int(limit) < longest:
        raise ConfigError(
            f"prompt_tokens + response_tokens + 1 = {longest}: the model of {reply.server} has {limit} positions; lower one of "
            "the two limits, or start the server with a larger --max-model-len"
        )
    is_whole = longest > len(tokenizer.encode(TEXT, add_special_tokens=False))
    has_ids = is_whole and _check_tokenizer(client, number, model, token_ids)
    has_texts = _check_tokens(client, number, model, tokenizer, token_ids)
    try:
        first, other = (_scores(client, number, model, token_ids, top_k, temperature) for temperature in (1.0, 2.0))
    except ServerUnavailableError:
        raise
    except ServerError as error:
        raise ServerError(
            f"{error}; a request for the {top_k} most probable tokens of each position failed: start the server with "
            f"--max-logprobs {top_k} or more, or lower teacher.top_k"
        ) from error
    if mean_difference(tuple(first.own_T), tuple(other.own_T)) > SAME_NATS:
        raise ServerError(
            f"{reply.server}: the log-probabilities of a prompt depend on the temperature; start the server with "
            "--logprobs-mode raw_logprobs"
        )
    untested = () if has_ids or has_texts else (reply.server,)
    return Probe(model=found, token_ids=token_ids, logprobs=tuple(map(float, first.own_T)), untested=untested)


def _scores(client: Client, number: int, model: str, token_ids: Sequence[int], top_k: int, temperature: float = 1.0) -> Scores:
    request = scores_request(model, [token_ids], top_k=top_k, server=number, is_pinned=True, temperature=temperature)
    (reply,) = client.exchange([request])
    with checked(reply) as value:
        (found,) = parse_scores(value, [token_ids], top_k=top_k, vocabulary=2**31)
    return found


def _check_tokenizer(client: Client, number: int, model: str, token_ids: tuple[int, ...]) -> bool:
    """Compare the server's token ids of the probe text with the student's tokenizer.

    Returns:
        True if the server returns token ids.

    Raises:
        VocabularyError: the ids differ.
    """
    request = scores_request(model, TEXT, top_k=1, server=number, is_pinned=True)
    (reply,) = client.exchange([request])
    with checked(reply) as value:
        ids = prompt_token_ids(value)
    if ids is not None and tuple(ids) != token_ids:
        raise VocabularyError(
            f"{reply.server}: its tokenizer is not that of the student: a test text has other token ids on "
            f"the server ({len(ids)} tokens) than with the student's tokenizer ({len(token_ids)} tokens); use a teacher and a "
            "student with the same tokenizer"
        )
    return ids is not None


def _check_tokens(client: Client, number: int, model: str, tokenizer: Tokenizer, token_ids: tuple[int, ...]) -> bool:
    """Check that the server and the student's tokenizer decode token ids equally.

    The ids are spread over the vocabulary, and include the special tokens.

    Returns:
        True if the server returned the text of at least one of these tokens.

    Raises:
        VocabularyError: an id stands for different tokens on the server and for the student.
    """
    known = sorted(tokenizer.get_vocab().values())
    spread = known[:: max(1, len(known) // NUM_IDS)]
    sent = [token_ids[0], *dict.fromkeys([*tokenizer.all_special_ids, *spread, known[-1]])]
    has_texts = False
    for start in range(1, len(sent), max(1, len(token_ids) - 1)):
        part = [token_ids[0], *sent[start : start + max(1, len(token_ids) - 1)]]
        scores = _scores(client, number, model, part, 1)
        for token, theirs in zip(part[1:], scores.texts, strict=True):
            ours = tokenizer.decode([token]).strip()
            theirs = (theirs or "").strip()
            has_texts |= bool(theirs)
            if ours and theirs and "\ufffd" not in ours + theirs and ours != theirs:
                raise VocabularyError(
                    f"{client.servers[number].label}: id {token} is {client.filtered(theirs)!r} on the server and {ours!r} in "
                    "the student's tokenizer; use a teacher and a student with the same tokenizer"
                )
    return has_texts
