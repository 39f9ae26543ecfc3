"""Latency, memory and divergences by token of sampled answers."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from redistill.config.run import decode_run, encode_run, without_outputs
from redistill.contracts import Generation, Processes, Sampling
from redistill.errors import ConfigError
from redistill.evaluation.answers import Answerer
from redistill.evaluation.measurements import MeasureConfig, measure, rounded, sampled_prompts
from redistill.evaluation.positions import STATISTICS
from redistill.evaluation.scores import EvaluationConfig
from redistill.processes.memory import peak_growth
from redistill.records import RawPrompt, Record
from redistill.storage import files
from tests.evaluation.test_acceptance import LEAST
from tests.evaluation.test_evaluation import Interrupted, network, on_processes, run, stop_after, teacher

SEEDS = (10, 20)


def config(**measured: Any) -> EvaluationConfig:
    return EvaluationConfig(seeds=SEEDS, batch_size=2, measure=MeasureConfig(**{"prompts": 16, **measured}))


def rows(names: str) -> list[tuple[Record, tuple[int, ...]]]:
    return [(Record(record_id=name, prompt=RawPrompt(name), references=("x",)), (2, 3)) for name in names]


class Timed:
    """An engine whose requests take 1, 2, 3 ... seconds of a clock, and generate as many tokens as allowed."""

    def __init__(self) -> None:
        self.now, self.requests = 0.0, list[Any]()

    def clock(self) -> float:
        return self.now

    def generate(self, requests: Any, sampling: Sampling) -> list[Generation]:
        self.requests += requests
        self.now += len(self.requests)
        assert len(requests) == 1, "batch size 1"
        return [Generation(token_ids=(4,) * requests[0].max_new_tokens, finished=False)]


# --- the sample ---------------------------------------------------------------------------------------------------------


def test_the_sample_depends_on_seed_and_ids_and_not_on_the_order_of_prompts() -> None:
    found = sampled_prompts({"a": rows("abcdef"), "b": rows("abc")}, 4, 10)
    assert found == sampled_prompts({"b": rows("cba"), "a": rows("fedcba")}, 4, 10)
    assert found != sampled_prompts({"a": rows("abcdef"), "b": rows("abc")}, 4, 11)
    assert found[:2] == sampled_prompts({"a": rows("abcdef"), "b": rows("abc")}, 2, 10)


def test_small_evaluations_measure_few_prompts() -> None:
    found = [MeasureConfig().number(answers) for answers in range(0, 5000, 10)]
    assert found == sorted(found) and {found[0], found[-1]} == {4, 16}
    assert all(number <= max(4, answers / 50) for number, answers in zip(found, range(0, 5000, 10), strict=True))
    assert {MeasureConfig(prompts=7).number(answers) for answers in (1, 10_000)} == {7}


def test_the_sample_has_all_prompts_if_there_are_few_and_none_if_none_are_wanted() -> None:
    everything = {"a": rows("abc"), "b": rows("ab")}
    keys = {(name, row[0].record_id) for name, row in sampled_prompts(everything, 16, 10)}
    assert keys == {(name, row[0].record_id) for name, some in everything.items() for row in some}
    assert sampled_prompts(everything, 0, 10) == []


# --- latency and memory -------------------------------------------------------------------------------------------------


def test_latencies_are_percentiles_of_the_times_of_single_requests() -> None:
    engine = Timed()
    answerer = Answerer(engine, None, Sampling(), 5, (1,))  # type: ignore[arg-type]
    sample = sampled_prompts({"a": rows("abcd")}, 4, 10)
    answers, found = measure(answerer, sample, 10, weight_bytes=7, device=torch.device("cpu"), clock=engine.clock)
    assert [request.max_new_tokens for request in engine.requests] == [2, 1, 1, 1, 1, 5, 5, 5, 5]
    first, whole = [2.0, 3, 4, 5], [6.0, 7, 8, 9]  # request 1 is not measured
    assert found["latency"] == {
        "prompts": 4,
        "p50_s": rounded(np.percentile(whole, 50)),
        "p95_s": rounded(np.percentile(whole, 95)),
        "first_token_p50_s": rounded(np.percentile(first, 50)),
        "first_token_p95_s": rounded(np.percentile(first, 95)),
        "mean_tokens": 5,
    }
    assert [len(answer.token_ids) for answer in answers] == [5] * 4 and found["peak_bytes"] >= 7


def test_the_growth_of_memory_is_that_of_the_work() -> None:
    small, large = (peak_growth(lambda size=size: torch.ones(size).sum(), torch.device("cpu"))[1] for size in (10, 25_000_000))
    if large is None:
        pytest.skip("this system does not report the peak")
    assert 90_000_000 < large < 200_000_000 and small < 50_000_000


def test_an_evaluation_stores_latency_and_memory_and_measures_once(tokenizer: Any, tmp_path: Path) -> None:
    scores = run(tokenizer, tmp_path, config=config(prompts=3))
    latency = scores["latency"]
    assert latency["prompts"] == 3 and 0 < latency["p50_s"] <= latency["p95_s"]
    assert 0 < latency["first_token_p50_s"] <= latency["first_token_p95_s"]
    assert scores["peak_bytes"] >= scores["bytes"] and not (tmp_path / "positions.jsonl").exists()
    assert run(tokenizer, tmp_path, config=config(prompts=3)) == scores
    more = run(tokenizer, tmp_path, config=config(prompts=16))
    assert more["latency"]["prompts"] == 5 and more["datasets"] == scores["datasets"]
    assert more["settings"] == scores["settings"] == run(tokenizer, tmp_path / "off", config=config(prompts=0))["settings"]
    assert "latency" not in files.read_json(tmp_path / "off" / "scores.json")


def test_other_processes_wait_and_have_the_same_measurements(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "one", teacher=teacher(), config=config())

    def work(rank: int, gather: Any) -> dict[str, Any]:
        given = {"teacher": teacher(), "config": config(), "processes": Processes(rank, 2, gather)}
        return run(tokenizer, tmp_path / "two", **given)

    first, second = on_processes(2, work)
    assert first["latency"] == second["latency"] == files.read_json(tmp_path / "two" / "scores.json")["latency"]
    paths = [tmp_path / name / "positions.jsonl" for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# --- divergences by token -----------------------------------------------------------------------------------------------


def oracle(student: nn.Module, other: nn.Module, prompt: list[int], answer: list[int]) -> dict[str, list[float]]:
    """The statistics of each token of an answer, from float64 logits of the unpadded sequence."""
    ids = torch.tensor([prompt + answer])
    logits = [copy.deepcopy(model).double()(ids).logits[0].detach().numpy() for model in (student, other)]
    logq, logp = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in logits)
    at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return {
        "forward_kl": [float((np.exp(logp[i]) * (logp[i] - logq[i])).sum()) for i in at],
        "student_logprob": [float(logq[i, token]) for i, token in zip(at, answer, strict=True)],
        "teacher_logprob": [float(logp[i, token]) for i, token in zip(at, answer, strict=True)],
    }


def test_divergences_by_token_are_those_of_both_models_on_the_stored_answers(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, teacher=teacher(), config=config())
    lines = files.read_lines(tmp_path / "positions.jsonl")
    stored = {line["id"]: line for line in files.read_lines(tmp_path / "responses" / "dolly-seed10.jsonl")}
    assert {line["id"] for line in lines} == set(stored)
    for line in lines:
        assert (line["dataset"], line["seed"]) == ("dolly", 10)
        answer = tokenizer.convert_tokens_to_ids([text.strip() for text in line["tokens"]])
        ended = [token for token in line["tokens"] if token.strip() != "<|endoftext|>"]
        assert "".join(ended).strip() == stored[line["id"]]["response"].strip()
        assert len(answer) == stored[line["id"]]["tokens"]
        prompt = tokenizer(stored[line["id"]]["prompt"])["input_ids"]
        expected = oracle(network(0), network(1), prompt, answer)
        for name in STATISTICS:
            assert line[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6)
            assert all(value == rounded(value) for value in line[name])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_the_size_limit_leaves_out_whole_lines_at_the_end(tokenizer: Any, tmp_path: Path, share: float) -> None:
    run(tokenizer, tmp_path / "all", teacher=teacher(), config=config())
    whole = (tmp_path / "all" / "positions.jsonl").read_bytes()
    limit = int(share * len(whole))
    run(tokenizer, tmp_path / "some", teacher=teacher(), config=config(positions_bytes=limit))
    path = tmp_path / "some" / "positions.jsonl"
    if not limit:
        assert not path.exists()
        return
    some = path.read_bytes()
    assert len(some) <= limit and whole.startswith(some) and (not some or some.endswith(b"\n"))
    assert len(some) + len(whole[len(some) :].splitlines(keepends=True)[0]) > limit, "no line that fits is left out"


def test_an_interrupted_evaluation_writes_the_same_divergences_when_it_resumes(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "straight", teacher=teacher(), config=config())
    with pytest.raises(Interrupted):
        run(tokenizer, tmp_path / "broken", teacher=teacher(), config=config(), progress=stop_after(4))
    run(tokenizer, tmp_path / "broken", teacher=teacher(), config=config())
    paths = [tmp_path / name / "positions.jsonl" for name in ("straight", "broken")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_divergences_are_added_to_an_evaluation_that_lacks_them(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, config=config())
    assert not (tmp_path / "positions.jsonl").exists()
    run(tokenizer, tmp_path, teacher=teacher(), config=config())
    first = files.read_lines(tmp_path / "positions.jsonl")
    (tmp_path / "positions.jsonl").unlink()
    run(tokenizer, tmp_path, teacher=teacher(), config=config())
    assert files.read_lines(tmp_path / "positions.jsonl") == first


def test_numbers_that_are_not_finite_are_null(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def statistics(self: Any, sequences: Any, ask: Any) -> Any:
        return {name: [torch.full((sequence.num_targets,), -math.inf) for sequence in sequences] for name in ask}

    monkeypatch.setattr("redistill.policies.scorer.Scorer.statistics", statistics)
    run(tokenizer, tmp_path, teacher=teacher(), config=config(prompts=1))
    (line,) = files.read_lines(tmp_path / "positions.jsonl")
    assert line["forward_kl"] == [None] * len(line["tokens"])


# --- settings -----------------------------------------------------------------------------------------------------------


def test_measurements_do_not_change_the_identity_of_a_run() -> None:
    plain, other = (decode_run(LEAST | {"evaluation": {"measure": {"prompts": count}}}, "test") for count in (16, 0))
    assert without_outputs(encode_run(plain)) == without_outputs(encode_run(other))


@pytest.mark.parametrize("name", ["prompts", "positions_bytes"])
def test_negative_settings_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = -1: must be >= 0"):
        decode_run(LEAST | {"evaluation": {"measure": {name: -1}}}, "test")
