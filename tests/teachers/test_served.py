"""The served teacher: settings, arithmetic, and hostile replies in the middle of a run."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from redistill.contracts import GenerationRequest, Sampling, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError, ServerError, ServerUnavailableError
from redistill.servers.address import parse_url
from redistill.servers.client import Client, Limits
from redistill.teachers.probe import Probe
from redistill.teachers.served import ServedTeacher, ServedTeacherConfig, announcement
from tests.servers.fake import Answer, ModelScript, Received, serving
from tests.servers.test_completions import INVALID as INVALID_SCORES
from tests.worlds import LLAMA, write_model

URL = "http://127.0.0.1:8000/v1"
PROBE_IDS = tuple(range(5, 25))


def settings(**changes: Any) -> ServedTeacherConfig:
    return ServedTeacherConfig(**{"url": (URL,), "model": "teacher", "top_k": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": ()}, "url"),
        ({"url": (URL, "http://me:pass@host")}, "url"),
        ({"url": ("teacher.example",)}, "url"),
        ({"model": " "}, "model"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1025}, "top_k"),
        ({"api_key_env": "HOME"}, "api_key_env"),
        ({"prompts_per_request": 0}, "prompts_per_request"),
        ({"concurrent_requests": 0}, "concurrent_requests"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"patience_s": -1.0}, "patience_s"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"price": -1.0}, "price"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}\b"):
        settings(**changes)


def test_the_capabilities_are_those_of_a_top_k_teacher() -> None:
    found = settings(top_k=20).capabilities
    assert (found.top_k, found.generates, found.new_text) == (20, True, True)
    assert not (found.full_vocabulary or found.statistics or found.mixture or found.prefix_memory)


def test_the_announcement_names_each_host_and_the_variable() -> None:
    local = announcement(settings())
    assert local.endswith("sent to 127.0.0.1:8000 on this machine")
    both = announcement(settings(url=(URL, "https://teacher.example/v1"), api_key_env="MY_KEY"))
    assert both.endswith("sent to 127.0.0.1:8000, teacher.example:443 and leave this machine, with the API key in $MY_KEY")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> ModelScript:
    return ModelScript(write_model(tmp_path_factory.mktemp("served") / "teacher", LLAMA, 1))


class Counted:
    """Counts the requests and tokens of a teacher; `said` has the lines that are printed."""

    def __init__(self) -> None:
        self.requests, self.tokens, self.generated, self.said = 0, 0, 0, list[str]()

    def __call__(self, requests: int, tokens: int) -> None:
        self.requests, self.tokens = self.requests + requests, self.tokens + tokens

    def text(self, tokens: int) -> None:
        self.generated += tokens


def teacher_of(url: str, script: ModelScript, counted: Counted | None = None, **changes: Any) -> ServedTeacher:
    """A teacher that has passed the self-test."""
    counted, node = counted or Counted(), settings(url=(url,), **changes)
    limits = Limits(connect_s=5, total_s=5, attempts=2, first_wait_s=0)
    client = Client([parse_url(url)], key=None, limits=limits, report=counted.said.append)
    logp_TV = script.logp(PROBE_IDS)
    own = tuple(float(logp_TV[t, token]) for t, token in enumerate(PROBE_IDS[1:]))
    probe = Probe(model={"id": "teacher"}, token_ids=PROBE_IDS, logprobs=own)
    return ServedTeacher(
        node,
        client,
        probe,
        vocabulary=len(script.tokenizer),
        end_ids=(0,),
        device="cpu",
        count_text=counted.text,
        count=counted,
    )


def sequences() -> list[TokenSequence]:
    """Sequences of different lengths with targets inside and at the end."""
    made = []
    for sample, length in enumerate((9, 4, 12)):
        marks = tuple(position > 2 and position % 3 != 1 for position in range(length))
        made.append(TokenSequence(sample=sample, token_ids=tuple(range(20, 20 + length)), supervised=marks, origin="dataset"))
    return made


def test_rows_are_the_models_most_probable_classes_with_the_rest(script: ModelScript) -> None:
    counted = Counted()
    with serving(script) as server:
        teacher = teacher_of(server.url, script, counted, prompts_per_request=2)
        teacher.prepare(sequences())
        teacher.prepare(sequences())  # nothing is fetched twice
    batch = collate(items_of(sequences(), "distillation"), pad_id=0)
    target = teacher.rows(batch)
    found = target(slice(0, batch.num_sampled_rows))
    logp_NV = torch.cat([script.logp(batch.input_ids_BT[b].tolist()) for b in range(batch.num_sampled)])[batch.position_N]
    top = logp_NV.topk(8, dim=-1)
    torch.testing.assert_close(found.class_NK, top.indices)
    torch.testing.assert_close(found.logp_NK, top.values, atol=1e-5, rtol=0)
    rest_N = logp_NV.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.log_rest_N, rest_N, atol=1e-5, rtol=0)
    total_N = found.logp_NK.exp().sum(-1) + found.log_rest_N.exp()
    torch.testing.assert_close(total_N, torch.ones(batch.num_sampled_rows), atol=1e-6, rtol=0)
    torch.testing.assert_close(target(slice(2, 4)).class_NK, top.indices[2:4])
    assert counted.requests == 2 and counted.tokens == 9 + 4 + 12 + 2 * len(PROBE_IDS)
    assert len(server.received) == 2


def test_released_classes_are_fetched_again(script: ModelScript) -> None:
    with serving(script) as server:
        teacher = teacher_of(server.url, script)
        for _ in range(2):
            teacher.prepare(sequences())
            teacher.release()
        teacher.prepare([])
    assert len(server.received) == 2 and teacher.faults() == 0


def test_text_is_the_same_for_the_same_seed_and_is_counted(script: ModelScript) -> None:
    requests = [GenerationRequest(prompt_ids=(5, 6), max_new_tokens=6, seed=1, stream=("a", n % 3)) for n in range(6)]
    counted = Counted()
    with serving(script) as server:
        teacher = teacher_of(server.url, script, counted)
        texts = teacher.generate(requests, Sampling())
    assert texts[:3] == texts[3:] and len(set(texts)) == 3
    assert counted.generated == sum(len(text.token_ids) for text in texts)
    assert (counted.requests, counted.tokens) == (7, counted.generated + 12 + len(PROBE_IDS))


def test_bans_of_n_grams_and_mixtures_are_rejected(script: ModelScript) -> None:
    teacher = teacher_of(URL, script)
    for sampling in (Sampling(no_repeat_ngram=6), Sampling(teacher_share=0.2)):
        with pytest.raises(ConfigError, match="use a local teacher"):
            teacher.generate([], sampling)


def test_more_classes_than_the_vocabulary_has(script: ModelScript) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.top_k = 1000: must be below the vocabulary size"):
        teacher_of(URL, script, top_k=1000)


Change = Callable[[Any], Any]

HOSTILE: dict[str, Change] = {
    **INVALID_SCORES,
    "weights of another model": lambda reply: [
        entry.update(logprob=entry["logprob"] - 1)
        for choice in reply["choices"]
        for row in choice["prompt_logprobs"][1:]
        for entry in row.values()
    ],
}
OTHER_VALUES = [{"error": {"message": "x" * 1000, "code": 500}}, [1], "<html>\x1b[2J</html>", None, 0, {}]
# These changes make a valid reply of this model, which has more tokens and less mass than the reply of the other tests.
for name in ("too few classes", "probabilities above 1", "the token itself is missing", "an id is the size of the vocabulary"):
    del HOSTILE[name]


def failed(script: ModelScript, change: Change, *, is_first: bool, exit_code: int) -> str:
    """The error of a teacher whose server changes its replies; the first choice comes last, as the tests of replies expect.

    With `is_first`, the first exchange fails, and otherwise the second one.
    """

    def changed(received: Received, reply: Any) -> Any:
        if is_good[0]:
            return reply
        reply["choices"].reverse()
        row = reply["choices"][1]["prompt_logprobs"][1]
        least = min(row.keys() - {str(received.body["prompt"][0][1])}, key=lambda key: row[key]["logprob"])
        row["3"] = row.pop(least)
        return change(reply)

    hostile, is_good = copy.copy(script), [not is_first]
    hostile.change = changed
    with serving(hostile) as server:
        teacher = teacher_of(server.url, script, patience_s=0.0)
        if is_good[0]:
            teacher.prepare(sequences()[1:])
            is_good[0] = False
        with pytest.raises(ServerError) as caught:
            teacher.prepare(sequences()[:1])
    assert caught.value.exit_code == exit_code
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 400 and "\x1b" not in text
    assert ("run the same command again to resume" in text) == (exit_code == 75)
    return text


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reply_is_an_error_of_one_line(script: ModelScript, name: str, is_first: bool) -> None:
    def change(reply: Any) -> Any:
        HOSTILE[name](reply)
        return reply

    exit_code = 2 if is_first and "weights" not in name else 75
    text = failed(script, change, is_first=is_first, exit_code=exit_code)
    assert ("the model has changed" if "weights" in name else ":") in text


@pytest.mark.parametrize("value", OTHER_VALUES)
def test_another_json_value_is_an_error_of_one_line(script: ModelScript, value: Any) -> None:
    assert "invalid reply: choices are missing" in failed(script, lambda reply: value, is_first=True, exit_code=2)


@pytest.mark.parametrize(
    "ids", [None, [], [4], [0, 5], [4, 10**6, 0], [4, -1, 0], ["4", 0], [True, 0], [4] * 99, {"0": 1}, [[4], 0], [4.0, 0]]
)
def test_a_hostile_text_is_an_error_of_one_line(script: ModelScript, ids: Any) -> None:
    request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=6, seed=1, stream=("a", 0))
    answer = Answer({"choices": [{"index": 0, "token_ids": ids}]})
    with serving(lambda received: answer) as server, pytest.raises(ServerError, match="invalid reply") as caught:
        teacher_of(server.url, script).generate([request], Sampling())
    assert len(str(caught.value).splitlines()) == 1


class Planted:
    """A model server that changes one reply, the one with the number `at`, and has other weights from `shifted_at` on."""

    def __init__(self, script: ModelScript, *, at: int = -1, shifted_at: int = -1, shifted_for: int = 10**9) -> None:
        self.script, self.at, self.shifted_at, self.shifted_for = copy.copy(script), at, shifted_at, shifted_for
        self.fault, self.count = "nan", 0

    def __call__(self, received: Received) -> Answer:
        number, self.count = self.count, self.count + 1
        has_shift = self.shifted_at >= 0 and 0 <= number - self.shifted_at < self.shifted_for
        self.script.shift = 50.0 if has_shift else 0.0
        answer = self.script(received)
        if number == self.at:
            choice = answer.body["choices"][0]
            if self.fault == "nan":
                choice["token_ids"] = None
                for row in (choice.get("prompt_logprobs") or [None])[1:]:
                    next(iter(row.values()))["logprob"] = float("nan")
            elif self.fault == "short":
                answer.body["choices"].pop()
            else:
                return Answer({"error": {"message": "The model does not exist."}}, 404)
        return answer


def texts_for(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt_ids=(5, 6, n), max_new_tokens=6, seed=1, stream=("a", n)) for n in range(count)]


@pytest.mark.parametrize("fault", ["nan", "short", "404"])
@pytest.mark.parametrize("is_text", [False, True])
def test_one_bad_reply_is_requested_again(script: ModelScript, fault: str, is_text: bool, monkeypatch) -> None:
    monkeypatch.setattr("redistill.servers.repetition._POLL_S", 0.0)
    planted, counted = Planted(script, at=7), Counted()
    planted.fault = fault
    with serving(planted) as server:
        teacher = teacher_of(server.url, script, counted, concurrent_requests=1)
        if is_text:
            before = teacher.generate(texts_for(4), Sampling())
            assert teacher.generate(texts_for(4), Sampling()) == before
        else:
            for _ in range(9):
                teacher.prepare(sequences())
                teacher.release()
    assert len(counted.said) == 1 and ("waiting up to" if fault == "404" else "the request is repeated") in counted.said[0]


def test_texts_of_other_weights_are_discarded_and_requested_again(script: ModelScript, monkeypatch) -> None:
    monkeypatch.setattr("redistill.servers.repetition._POLL_S", 0.0)
    planted, counted = Planted(script, shifted_at=5 + 2, shifted_for=6), Counted()
    with serving(planted) as server:
        teacher = teacher_of(server.url, script, counted)
        before = teacher.generate(texts_for(4), Sampling())
        assert teacher.generate(texts_for(4), Sampling()) == before
    assert len(counted.said) == 1 and "the model has changed since the start" in counted.said[0]
    assert planted.count > 7 + 6, "the server was compared until it had the original weights"


def test_other_weights_end_a_run_when_the_patience_ends(script: ModelScript) -> None:
    with serving(Planted(script, shifted_at=5)) as server:
        teacher = teacher_of(server.url, script, patience_s=0.0)
        teacher.generate(texts_for(4), Sampling())
        with pytest.raises(ServerUnavailableError, match=r"the model has changed.*run the same command again") as caught:
            teacher.generate(texts_for(4), Sampling())
    assert caught.value.exit_code == 75


def test_a_hostile_address_of_a_key_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "q7w8e9r0t1y2u3i4")
    with pytest.raises(ConfigError, match=r"--allow-host teacher\.example"):
        settings(url=("https://teacher.example/v1",), api_key_env="MY_KEY").connect([].append)
