"""Requests to a completions endpoint, and the checks of its replies."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ServerError
from redistill.servers.client import Reply
from redistill.servers.completions import (
    InvalidReplyError,
    checked,
    parse_scores,
    parse_text,
    prompt_token_ids,
    scores_request,
    served_model,
    text_request,
)

VOCABULARY = 10
PROMPTS = [[5, 6, 7], [1, 2]]


def entry(probability: float, text: str = "x") -> dict[str, Any]:
    return {"logprob": math.log(probability), "rank": 1, "decoded_token": text}


def scores_reply() -> dict[str, Any]:
    """A valid reply for `PROMPTS` with two classes; at the second position of the first prompt, token 7 is not one of them."""
    rows = [
        [None, {"3": entry(0.25), "6": entry(0.5, " six")}, {"7": entry(0.125, "seven"), "1": entry(0.25), "4": entry(0.5)}],
        [None, {"2": entry(0.75), "9": entry(0.125)}],
    ]
    choices = [{"index": n, "prompt_logprobs": rows[n], "prompt_token_ids": PROMPTS[n], "token_ids": [1]} for n in (1, 0)]
    return {"choices": choices, "usage": {"prompt_tokens": 5}}


def test_the_most_probable_classes_are_sorted_and_not_renormalised() -> None:
    one, two = parse_scores(scores_reply(), PROMPTS, top_k=2, vocabulary=VOCABULARY)
    assert one.class_TK.tolist() == [[6, 3], [4, 1]] and two.class_TK.tolist() == [[2, 9]]
    assert np.exp(one.logp_TK) == pytest.approx(np.array([[0.5, 0.25], [0.5, 0.25]]), abs=1e-12)
    assert np.exp(one.own_T) == pytest.approx([0.5, 0.125], abs=1e-12)
    assert one.texts == (" six", "seven")


def test_a_prompt_of_one_token_has_no_scores() -> None:
    reply = {"choices": [{"index": 0, "prompt_logprobs": [None]}]}
    (found,) = parse_scores(reply, [[5]], top_k=2, vocabulary=VOCABULARY)
    assert found.class_TK.shape == (0, 2) and found.own_T.shape == (0,)


Change = Callable[[dict[str, Any]], object]


def first(reply: dict[str, Any]) -> dict[str, Any]:
    """The choice with the index 0, which comes second."""
    return reply["choices"][1]


def row(reply: dict[str, Any], position: int = 1) -> dict[str, Any]:
    return first(reply)["prompt_logprobs"][position]


def logprob(value: object) -> Change:
    return lambda reply: row(reply)["3"].update(logprob=value)


def renamed(name: str) -> Change:
    return lambda reply: row(reply).update({name: row(reply).pop("3")})


INVALID: dict[str, Change] = {
    "no choices": lambda reply: reply.pop("choices"),
    "choices are an object": lambda reply: reply.update(choices={}),
    "choices are null": lambda reply: reply.update(choices=None),
    "too few choices": lambda reply: reply["choices"].pop(),
    "too many choices": lambda reply: reply["choices"].append(copy.deepcopy(first(reply))),
    "a choice is null": lambda reply: reply["choices"].__setitem__(0, None),
    "no index": lambda reply: first(reply).pop("index"),
    "two equal indices": lambda reply: first(reply).update(index=1),
    "an index is negative": lambda reply: first(reply).update(index=-1),
    "an index is too large": lambda reply: first(reply).update(index=2),
    "an index is true": lambda reply: first(reply).update(index=True),
    "an index is a float": lambda reply: first(reply).update(index=0.0),
    "an index is text": lambda reply: first(reply).update(index="0"),
    "exchanged indices": lambda reply: (first(reply).update(index=1), reply["choices"][0].update(index=0)),
    "other token ids": lambda reply: first(reply).update(prompt_token_ids=[5, 6, 8]),
    "more token ids": lambda reply: first(reply).update(prompt_token_ids=[0, 5, 6, 7]),
    "token ids as text": lambda reply: first(reply).update(prompt_token_ids=["5", "6", "7"]),
    "no log-probabilities": lambda reply: first(reply).pop("prompt_logprobs"),
    "log-probabilities are null": lambda reply: first(reply).update(prompt_logprobs=None),
    "log-probabilities are an object": lambda reply: first(reply).update(prompt_logprobs={}),
    "no positions": lambda reply: first(reply).update(prompt_logprobs=[]),
    "a missing position": lambda reply: first(reply)["prompt_logprobs"].pop(),
    "a further position": lambda reply: first(reply)["prompt_logprobs"].append(row(reply)),
    "no null at the start": lambda reply: first(reply)["prompt_logprobs"].__setitem__(0, row(reply)),
    "a position is null": lambda reply: first(reply)["prompt_logprobs"].__setitem__(1, None),
    "a position is a list": lambda reply: first(reply)["prompt_logprobs"].__setitem__(1, [1, 2]),
    "a position is empty": lambda reply: row(reply).clear(),
    "too few classes": lambda reply: row(reply).pop("3"),
    "too many classes": lambda reply: row(reply, 2).update({"8": entry(0.01), "9": entry(0.01)}),
    "one class too many": lambda reply: row(reply).update({"8": entry(0.01)}),
    "the token itself is missing": lambda reply: row(reply, 2).pop("7"),
    "an id is the size of the vocabulary": renamed("10"),
    "an id is large": renamed("999999999999999999999999"),
    "an id is negative": renamed("-3"),
    "an id has a zero in front": renamed("03"),
    "an id has a plus": renamed("+3"),
    "an id has a space": renamed(" 3"),
    "an id has a line feed": renamed("3\n"),
    "an id has an underscore": renamed("0_3"),
    "an id is another digit": renamed("\u0663"),
    "an id is text": renamed("token"),
    "an id is empty": renamed(""),
    "an id is a float": renamed("3.0"),
    "a value is a number": lambda reply: row(reply).update({"3": -1.0}),
    "a value is null": lambda reply: row(reply).update({"3": None}),
    "no log-probability": lambda reply: row(reply)["3"].pop("logprob"),
    "a log-probability is null": logprob(None),
    "a log-probability is text": logprob("-1.0"),
    "a log-probability is true": logprob(True),
    "a log-probability is NaN": logprob(math.nan),
    "a log-probability is infinite": logprob(math.inf),
    "a log-probability is minus infinity": logprob(-math.inf),
    "a log-probability is positive": logprob(0.5),
    "a log-probability is huge": logprob(10**400),
    "a log-probability is minus huge": logprob(-(10**400)),
    "a log-probability is a list": logprob([-1.0]),
    "probabilities above 1": lambda reply: row(reply)["3"].update(logprob=math.log(0.6)),
}


@pytest.mark.parametrize("change", INVALID.values(), ids=INVALID)
def test_an_invalid_reply_is_rejected_without_its_text(change: Change) -> None:
    reply = scores_reply()
    change(reply)
    with pytest.raises(InvalidReplyError) as caught:
        parse_scores(reply, PROMPTS, top_k=2, vocabulary=VOCABULARY)
    assert len(str(caught.value).splitlines()) == 1 and "999999" not in str(caught.value)


@pytest.mark.parametrize("reply", [None, [], "text", 1, True, {}, {"choices": "text"}, {"choices": [1, 2]}])
def test_another_value_is_rejected(reply: Any) -> None:
    with pytest.raises(InvalidReplyError):
        parse_scores(reply, PROMPTS, top_k=2, vocabulary=VOCABULARY)
    with pytest.raises(InvalidReplyError):
        parse_text(reply, REQUEST, (0,), VOCABULARY)
    with pytest.raises(InvalidReplyError):
        prompt_token_ids(reply)
    with pytest.raises(InvalidReplyError):
        served_model(reply, "teacher")


def test_rounding_above_0_is_cut() -> None:
    reply = scores_reply()
    row(reply)["3"]["logprob"], row(reply)["6"]["logprob"] = -30.0, 1e-7
    one, _ = parse_scores(reply, PROMPTS, top_k=2, vocabulary=VOCABULARY)
    assert one.logp_TK[0].tolist() == [0.0, -30.0]


def test_equal_log_probabilities_are_ordered_by_id() -> None:
    reply = {"choices": [{"index": 0, "prompt_logprobs": [None, {"9": entry(0.25), "2": entry(0.25), "4": entry(0.25)}]}]}
    (found,) = parse_scores(reply, [[5, 4]], top_k=2, vocabulary=VOCABULARY)
    assert found.class_TK.tolist() == [[2, 4]]


def test_an_error_names_the_server() -> None:
    with (
        pytest.raises(ServerError, match=r"^server host:1: invalid reply: choices are missing$"),
        checked(Reply({}, "server host:1")) as value,
    ):
        parse_scores(value, PROMPTS, top_k=2, vocabulary=VOCABULARY)


def test_a_request_leaves_no_default_to_the_server() -> None:
    body = scores_request("teacher", PROMPTS, top_k=64, server=0).body
    assert body is not None
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "stream": False}
    assert neutral.items() <= body.items()
    assert (body["prompt"], body["prompt_logprobs"], body["add_special_tokens"]) == (PROMPTS, 64, False)


# --- generated text -----------------------------------------------------------------------------------------------------

REQUEST = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("teacher-response", 7))


def test_a_request_for_text() -> None:
    body = text_request("teacher", REQUEST, Sampling(temperature=0.7, top_p=0.9), (0, 2), 0).body
    other = text_request("teacher", REQUEST, Sampling(temperature=0.7, top_p=0.9), (0, 2), 5).body
    assert body == other and body is not None
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["prompt"]) == (0.7, 0.9, 3, [5, 6])
    assert body["stop_token_ids"] == [0, 2] and body["ignore_eos"] is True
    requests = [replace(REQUEST, stream=("teacher-response", number)) for number in range(50)]
    seeds = {text_request("teacher", request, Sampling(), (0,), 0).body["seed"] for request in requests}
    assert len(seeds) == 50 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(("ids", "finished"), [([4, 5, 0], True), ([0], True), ([4, 5, 6], False)])
def test_a_text(ids: list[int], finished: bool) -> None:
    found = parse_text({"choices": [{"token_ids": ids}]}, REQUEST, (0,), VOCABULARY)
    assert (found.token_ids, found.finished) == (tuple(ids), finished)


@pytest.mark.parametrize(
    "ids",
    [
        None,
        "45",
        {},
        [],
        [4],
        [4, 5],
        [4, 5, 6, 0],
        [0, 4, 5],
        [4, 10, 0],
        [4, -1, 0],
        [4, True, 0],
        [4, 5.0, 0],
        [4, "5", 0],
        [[4]],
    ],
)
def test_an_invalid_text_is_rejected(ids: Any) -> None:
    with pytest.raises(InvalidReplyError):
        parse_text({"choices": [{"token_ids": ids}]}, REQUEST, (0,), VOCABULARY)


# --- models -------------------------------------------------------------------------------------------------------------


def test_the_model_among_those_that_are_served() -> None:
    listed = [{"id": "other"}, {"id": "teacher", "root": "org/model", "max_model_len": 1024, "created": 1, "parent": None}]
    assert served_model({"data": listed}, "teacher") == {"id": "teacher", "root": "org/model", "max_model_len": "1024"}
    with pytest.raises(InvalidReplyError, match="the model is not served"):
        served_model({"data": listed}, "teach")


@pytest.mark.parametrize("data", [None, {}, [None], ["teacher"], [{"id": "teacher"}, 3]])
def test_another_list_of_models_is_rejected(data: Any) -> None:
    with pytest.raises(InvalidReplyError):
        served_model({"data": data}, "teacher")
