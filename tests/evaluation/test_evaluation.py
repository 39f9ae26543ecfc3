"""Evaluation: answers depend only on seed and prompt, evaluations resume, and scores equal their definitions."""

import copy
import functools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from redistill.contracts import ONE_PROCESS, Batch, Processes, Teacher, TeacherCapabilities, TeacherTarget
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import CheckpointError, ConfigError, DataError
from redistill.evaluation.answers import with_metrics
from redistill.evaluation.evaluator import Evaluator, build_local_engine
from redistill.evaluation.folder import model_hash
from redistill.evaluation.gold import teacher_forced
from redistill.evaluation.metrics import DEFAULT, METRICS
from redistill.evaluation.metrics.rouge_l import rouge_l
from redistill.evaluation.scores import EvaluationConfig
from redistill.records import Conversation, Instruction, Metric, RawPrompt, Record, Turn
from redistill.storage import files
from redistill.teachers.local import LocalTeacher
from tests.evaluation.conftest import WORDS

USUAL = tuple(METRICS[name] for name in DEFAULT)
TOKENS = TokenizeConfig(prompt_tokens=24, response_tokens=8)
ANSWERED = {"rouge_l": "rouge_l", "exact_match": "exact_match", "length_tokens": "tokens", "eos_rate": "finished"}
CONFIG = EvaluationConfig(seeds=(10, 20), batch_size=2)


class Interrupted(Exception):
    """Represents a kill between two batches."""


@functools.cache
def built(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    size, end = len(WORDS), WORDS.index("<|endoftext|>")
    config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=end, eos_token_id=end)
    return GPT2LMHeadModel(config).eval()


def network(seed: int = 0) -> GPT2LMHeadModel:
    return copy.deepcopy(built(seed))


def teacher() -> LocalTeacher:
    return LocalTeacher(network(1), vocabulary=len(WORDS), device="cpu")


def records(count: int = 5) -> list[Record]:
    texts = ["name a color now", "add two and two", "is it", "say a word about the sea", "go", "why not now"]
    answers = ["red", "it is two and two", "it is", "the sea is red", "not now"]
    return [
        Record(record_id=f"t:{number}", prompt=RawPrompt(texts[number]), references=(answers[number], "the color"))
        for number in range(count)
    ]


def evaluator(
    tokenizer: Any,
    model: nn.Module,
    *,
    config: EvaluationConfig = CONFIG,
    tokens: TokenizeConfig = TOKENS,
    teacher: Teacher | None = None,
    processes: Processes = ONE_PROCESS,
) -> Evaluator:
    return Evaluator(
        model=model,
        tokenizer=tokenizer,
        engine=build_local_engine(model, tokenizer, config),
        config=config,
        tokens=tokens,
        teacher=teacher,
        processes=processes,
    )


def run(
    tokenizer: Any,
    folder: Path,
    model: nn.Module | None = None,
    *,
    datasets: Any = None,
    label: str = "student",
    metrics: Any = None,
    progress: Any = None,
    **changes: Any,
) -> dict[str, Any]:
    datasets = {"dolly": records()} if datasets is None else datasets
    metrics = dict.fromkeys(datasets, USUAL) if metrics is None else metrics
    made = evaluator(tokenizer, model or network(), **changes)
    return made.evaluate(datasets, folder, label=label, metrics=metrics, progress=progress)


def responses(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "responses").iterdir()}


def stop_after(answers: int) -> Callable[[int, int, int], None]:
    def progress(done: int, total: int, tokens: int) -> None:
        if done >= answers:
            raise Interrupted

    return progress


def on_processes(world: int, work: Callable[[int, Callable[[list[Any]], list[Any]]], Any]) -> list[Any]:
    """Run `work(rank, gather)` on threads that represent processes."""
    barrier = threading.Barrier(world, timeout=60)
    handed_in: dict[int, list[Any]] = {}

    def process(rank: int) -> Any:
        def gather(values: list[Any]) -> list[Any]:
            handed_in[rank] = values
            barrier.wait()
            everything = [value for number in range(world) for value in handed_in[number]]
            barrier.wait()
            return everything

        try:
            return work(rank, gather)
        except Exception:
            barrier.abort()  # the others must not wait for it
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(process, range(world)))


def test_a_responses_file_has_a_line_for_every_prompt_in_order(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    lines = files.read_lines(tmp_path / "responses" / "dolly-seed10.jsonl")
    assert [line["id"] for line in lines] == [record.record_id for record in records()]
    for line, record in zip(lines, records(), strict=True):
        assert list(line) == ["id", "prompt", "response", "references", "rouge_l", "exact_match", "tokens", "finished"]
        assert line["references"] == list(record.references) and RawPrompt(line["prompt"]) == record.prompt
        assert line["rouge_l"] == rouge_l(line["response"], record.references)
        assert 1 <= line["tokens"] <= 8 and (line["finished"] or line["tokens"] == 8)
    assert len({line["response"] for line in lines}) > 1


def test_scores_are_the_means_of_the_lines(tokenizer: Any, tmp_path: Path) -> None:
    scores = run(tokenizer, tmp_path)
    assert files.read_json(tmp_path / "scores.json") == scores
    assert scores["label"] == "student" and scores["parameters"] == sum(p.numel() for p in network().parameters())
    assert scores["bytes"] == 4 * scores["parameters"] and scores["datasets"]["dolly"]["prompts"] == 5
    for seed in ("10", "20"):
        lines = files.read_lines(tmp_path / "responses" / f"dolly-seed{seed}.jsonl")
        found = scores["datasets"]["dolly"]["seeds"][seed]
        for name, field in ANSWERED.items():
            assert found[name] == pytest.approx(np.mean([line[field] for line in lines], dtype=np.float64), abs=1e-12)
        texts = [line["response"].split() for line in lines]
        assert found["distinct_1"] == len({word for words in texts for word in words}) / sum(map(len, texts)) < 1
        assert found["distinct_1"] < found["distinct_2"] <= 1
    assert any(0 < found["eos_rate"] < 1 and found["rouge_l"] > 0 for found in scores["datasets"]["dolly"]["seeds"].values())


def test_prompts_are_shown_without_the_template(tokenizer: Any, tmp_path: Path) -> None:
    turns = Conversation((Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")))
    prompts = [Instruction("Add.", "2 2"), Instruction("Sing"), turns]
    asked = [Record(record_id=f"p:{number}", prompt=prompt, references=("x",)) for number, prompt in enumerate(prompts)]
    tokens = TokenizeConfig(prompt_tokens=24, response_tokens=8, template="alpaca")
    run(tokenizer, tmp_path, datasets={"d": asked}, config=EvaluationConfig(seeds=(1,)), tokens=tokens)
    shown = [line["prompt"] for line in files.read_lines(tmp_path / "responses" / "d-seed1.jsonl")]
    assert shown == ["Add.\n\n2 2", "Sing", "user: Hi\n\nassistant: Hello\n\nuser: Bye"]


def test_the_limit_takes_the_first_prompts(tokenizer: Any, tmp_path: Path) -> None:
    scores = run(tokenizer, tmp_path, config=EvaluationConfig(seeds=(10,), limit=2))
    assert scores["datasets"]["dolly"]["prompts"] == 2
    assert [line["id"] for line in files.read_lines(tmp_path / "responses" / "dolly-seed10.jsonl")] == ["t:0", "t:1"]


def test_answers_do_not_depend_on_the_batch_size_or_on_the_order_of_prompts(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "two")
    run(tokenizer, tmp_path / "all", config=EvaluationConfig(seeds=(10, 20), batch_size=16))
    assert responses(tmp_path / "two") == responses(tmp_path / "all")
    run(tokenizer, tmp_path / "turned", datasets={"dolly": records()[::-1]})
    lines = files.read_lines(tmp_path / "turned" / "responses" / "dolly-seed10.jsonl")
    assert lines[::-1] == files.read_lines(tmp_path / "two" / "responses" / "dolly-seed10.jsonl")


def test_seeds_and_data_sets_have_independent_random_streams(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path, datasets={"a": records(), "b": records()})
    names = ["a-seed10", "a-seed20", "b-seed10", "b-seed20"]
    answers = [[line["response"] for line in files.read_lines(tmp_path / "responses" / f"{name}.jsonl")] for name in names]
    assert len({tuple(answer) for answer in answers}) == 4


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_same_files_as_one(tokenizer: Any, tmp_path: Path, world: int) -> None:
    alone = run(tokenizer, tmp_path / "one", config=EvaluationConfig(seeds=(10,)))

    def work(rank: int, gather: Any) -> dict[str, Any]:
        given = {"config": EvaluationConfig(seeds=(10,)), "processes": Processes(rank, world, gather)}
        return run(tokenizer, tmp_path / "many", **given)

    for scores in on_processes(world, work):
        assert scores["datasets"]["dolly"]["seeds"] == alone["datasets"]["dolly"]["seeds"]
    assert responses(tmp_path / "many") == responses(tmp_path / "one")
    assert files.read_json(tmp_path / "many" / "scores.json")["datasets"].keys() == {"dolly"}


# --- interruptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [2, 4, 5, 7])
def test_an_interrupted_evaluation_resumes_to_the_same_files(tokenizer: Any, tmp_path: Path, answers: int) -> None:
    straight = run(tokenizer, tmp_path / "straight")
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        run(tokenizer, folder, progress=stop_after(answers))
    assert (folder / "settings.json").exists() and not (folder / "scores.json").exists()
    seen: list[tuple[int, int, int]] = []
    resumed = run(tokenizer, folder, progress=lambda done, total, tokens: seen.append((done, total, tokens)))
    assert responses(folder) == responses(tmp_path / "straight")
    assert resumed["datasets"] == straight["datasets"]
    assert seen[-1][:2] == (10, 10)
    lines = [line for seed in (10, 20) for line in files.read_lines(folder / "responses" / f"dolly-seed{seed}.jsonl")]
    assert seen[-1][2] < sum(line["tokens"] for line in lines)  # some were not generated again


def test_an_incomplete_line_is_generated_again(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "straight")
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        run(tokenizer, folder, progress=stop_after(4))
    path = folder / "responses" / "dolly-seed10.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Interrupted):
        run(tokenizer, folder, progress=stop_after(5))  # appended lines must not continue the incomplete line
    run(tokenizer, folder)
    assert responses(folder) == responses(tmp_path / "straight")


def test_one_process_resumes_an_evaluation_of_several(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "straight")

    def work(rank: int, gather: Any) -> None:
        with pytest.raises(Interrupted):
            run(tokenizer, tmp_path / "many", processes=Processes(rank, 2, gather), progress=stop_after(2))

    on_processes(2, work)
    assert sorted(responses(tmp_path / "many")) == ["dolly-seed10.part0.jsonl", "dolly-seed10.part1.jsonl"]
    seen: list[int] = []
    run(tokenizer, tmp_path / "many", progress=lambda done, total, tokens: seen.append(done))
    assert seen[0] == 4 and responses(tmp_path / "many") == responses(tmp_path / "straight")


def test_a_finished_evaluation_is_loaded_and_not_repeated(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = run(tokenizer, tmp_path)
    model = network()
    monkeypatch.setattr(model.transformer, "forward", None)
    assert run(tokenizer, tmp_path, model) == scores


def test_an_evaluation_is_complete_without_gold_sequences(tokenizer: Any, tmp_path: Path) -> None:
    datasets = {"d": records(), "long": [Record(record_id="l", prompt=RawPrompt("word " * 30), references=("x",))]}
    run(tokenizer, tmp_path, datasets=datasets, teacher=teacher())
    before = (tmp_path / "scores.json").read_bytes()
    run(tokenizer, tmp_path, datasets=datasets, teacher=teacher())
    assert (tmp_path / "scores.json").read_bytes() == before


def test_a_teacher_added_later_completes_the_scores(tokenizer: Any, tmp_path: Path) -> None:
    before = run(tokenizer, tmp_path)["datasets"]["dolly"]
    after = run(tokenizer, tmp_path, teacher=teacher())["datasets"]["dolly"]
    assert before["teacher_forced"].keys() == {"cross_entropy"}
    assert after["teacher_forced"].keys() == {"cross_entropy", "kl", "agreement"}
    assert after["seeds"] == before["seeds"]


DIFFERENT: dict[str, dict[str, Any]] = {
    "sampling.temperature": {"config": EvaluationConfig(seeds=(10, 20), temperature=0.5)},
    "seeds": {"config": EvaluationConfig(seeds=(10,))},
    "limit": {"config": EvaluationConfig(seeds=(10, 20), limit=3)},
    "tokens.response_tokens": {"tokens": TokenizeConfig(prompt_tokens=24, response_tokens=7)},
    "datasets.dolly": {"datasets": {"dolly": records(4)}},
    "label": {"label": "teacher"},
    "model": {"model": network(1)},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_answers_of_other_settings_are_rejected(tokenizer: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(Interrupted):
        run(tokenizer, tmp_path, progress=stop_after(2))
    before = responses(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"its answers have {name} = .*, and this evaluation has .*; choose another folder"
    ):
        run(tokenizer, tmp_path, **DIFFERENT[name])
    assert responses(tmp_path) == before


def test_answers_without_settings_are_rejected(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(CheckpointError, match=r"but no settings\.json"):
        run(tokenizer, tmp_path)


def test_one_changed_weight_is_another_model(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    model = network()
    with torch.no_grad():
        weight = model.transformer.h[0].attn.c_attn.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    with pytest.raises(CheckpointError, match="its answers have model = "):
        run(tokenizer, tmp_path, model)


# --- metrics ------------------------------------------------------------------------------------------------------------

WORDS_OF = Metric(name="words", title="words", unit="words", better="lower", score=lambda answer, record: len(answer.split()))
LONGEST = Metric(name="longest", title="longest", score=lambda answer, record: float(len(answer)), aggregate=max)


def test_each_data_set_is_scored_by_its_metrics_and_lists_them(tokenizer: Any, tmp_path: Path) -> None:
    datasets = {"a": records(), "b": records()}
    metrics = {"a": [LONGEST, METRICS["rouge_l"]], "b": [WORDS_OF]}
    scores = run(tokenizer, tmp_path, datasets=datasets, metrics=metrics)["datasets"]
    assert list(scores["a"]["metrics"]) == ["longest", "rouge_l"]
    assert scores["b"]["metrics"] == {"words": {"title": "words", "unit": "words", "better": "lower"}}
    lines = {name: files.read_lines(tmp_path / "responses" / f"{name}-seed10.jsonl") for name in datasets}
    assert list(lines["a"][0])[4:] == ["longest", "rouge_l", "tokens", "finished"]
    assert list(lines["b"][0])[4:] == ["words", "tokens", "finished"]
    found = {name: scores[name]["seeds"]["10"] for name in datasets}
    assert found["a"]["longest"] == max(len(line["response"]) for line in lines["a"])
    assert found["b"]["words"] == pytest.approx(np.mean([len(line["response"].split()) for line in lines["b"]]))
    assert "rouge_l" not in found["b"] and "eos_rate" in found["b"]


def test_a_metric_added_later_scores_existing_answers(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(tokenizer, tmp_path / "folder")
    written = responses(tmp_path / "folder")
    more = {"dolly": [*USUAL, WORDS_OF]}
    both = run(tokenizer, tmp_path / "both", metrics=more)
    monkeypatch.setattr("redistill.generation.local.generate", None)
    after = run(tokenizer, tmp_path / "folder", metrics=more)
    assert after["datasets"] == both["datasets"] and after["tokens_per_s"] == before["tokens_per_s"]
    assert responses(tmp_path / "folder") == responses(tmp_path / "both") != written
    assert run(tokenizer, tmp_path / "folder")["datasets"] == before["datasets"] and responses(tmp_path / "folder") == written


def test_validation_computes_its_metrics(tokenizer: Any) -> None:
    scores = validate(tokenizer, network(), metrics=[WORDS_OF])
    assert list(scores)[:2] == ["words", "length_tokens"] and "rouge_l" not in scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "7", None])
def test_a_metric_that_returns_no_finite_number_is_reported(tokenizer: Any, tmp_path: Path, bad: Any) -> None:
    for fault in ("score", "aggregate"):
        metric = Metric(**{"name": "odd", "title": "odd", "score": lambda answer, record: 1.0, fault: lambda *_: bad})
        with pytest.raises(DataError, match=f"metric odd: the {fault} of .* is .*; it must be a finite Python number"):
            run(tokenizer, tmp_path / fault, metrics={"dolly": [metric]})


# --- teacher-forced scores ----------------------------------------------------------------------------------------------


def oracle(model: nn.Module, teacher: nn.Module, examples: list[Any]) -> dict[str, float]:
    """The three means from full float64 logits, one unpadded sequence at a time."""
    values: dict[str, list[float]] = {"cross_entropy": [], "kl": [], "agreement": []}
    for example in examples:
        ids = torch.tensor([example.token_ids])
        logits = [copy.deepcopy(m).double()(ids).logits[0].detach().numpy() for m in (model, teacher)]
        logq, logp = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in logits)
        for position in np.flatnonzero(example.supervised):
            q, p = logq[position - 1], logp[position - 1]
            values["cross_entropy"].append(-q[example.token_ids[position]])
            values["kl"].append(float((np.exp(p) * (p - q)).sum()))
            values["agreement"].append(float(p.argmax() == q.argmax()))
    return {name: float(np.mean(found)) for name, found in values.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_teacher_forced_equals_its_definition(tokenizer: Any, batch_size: int) -> None:
    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    student, other = network(0), network(1)
    found = teacher_forced(student, teacher(), examples, batch_size=batch_size)
    assert found == pytest.approx(oracle(student, other, examples), rel=1e-5)
    without = teacher_forced(student, None, examples, batch_size=batch_size)
    assert without == {"cross_entropy": found["cross_entropy"]}
    assert teacher_forced(student, None, [], batch_size=batch_size) == {}


def test_a_teacher_of_top_classes_gives_no_kl(tokenizer: Any) -> None:
    class TopK:
        capabilities = TeacherCapabilities(full_vocabulary=False, top_k=5)

        def rows(self, batch: Batch) -> TeacherTarget:
            raise AssertionError("asked")

    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    assert teacher_forced(network(), TopK(), examples, batch_size=2).keys() == {"cross_entropy"}


def test_dropout_is_disabled_and_the_mode_restored(tokenizer: Any) -> None:
    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    model = network().train()
    model.transformer.h[0].eval()  # frozen on purpose
    modes = [module.training for module in model.modules()]
    first = teacher_forced(model, None, examples, batch_size=2)
    assert first == teacher_forced(network(), None, examples, batch_size=2)
    assert [module.training for module in model.modules()] == modes


def test_prompts_too_long_for_gold_sequences_are_answered(tokenizer: Any, tmp_path: Path) -> None:
    asked = [Record(record_id="long", prompt=RawPrompt("word " * 30), references=("x",))]
    scores = run(tokenizer, tmp_path, datasets={"d": asked})
    assert scores["datasets"]["d"]["teacher_forced"] == {} and scores["datasets"]["d"]["seeds"]["10"]["length_tokens"] > 0


# --- scores that choose a checkpoint ------------------------------------------------------------------------------------


def validate(tokenizer: Any, model: nn.Module, processes: Processes = ONE_PROCESS, metrics: Any = None) -> dict[str, float]:
    examples, _ = tokenize_training(records(), tokenizer, TOKENS, seed=0)
    made = evaluator(tokenizer, model, teacher=teacher(), processes=processes)
    return made.validate(records(), examples, metrics=metrics or USUAL, seed=10)


def test_validation_uses_the_same_random_numbers_every_time(tokenizer: Any) -> None:
    model = network().train()
    scores = validate(tokenizer, model)
    assert scores.keys() == {*ANSWERED, "distinct_1", "distinct_2", "cross_entropy", "kl", "agreement"} and model.training
    assert validate(tokenizer, model) == scores
    assert validate(tokenizer, network(2)) != scores


@pytest.mark.parametrize("world", [2, 7])
def test_validation_on_several_processes_scores_every_prompt_once(tokenizer: Any, world: int) -> None:
    alone = validate(tokenizer, network())

    def work(rank: int, gather: Any) -> dict[str, float]:
        return validate(tokenizer, network(), Processes(rank, world, gather))

    for scores in on_processes(world, work):
        assert [scores[name] for name in ANSWERED] == [alone[name] for name in ANSWERED]
        assert scores == pytest.approx(alone, rel=1e-5)


# --- invalid data and settings ------------------------------------------------------------------------------------------


def test_data_that_cannot_be_scored_is_rejected_before_a_file_is_written(tokenizer: Any, tmp_path: Path) -> None:
    unanswered = Record(record_id="t:9", prompt=RawPrompt("Go"), references=())
    cases: list[tuple[dict[str, list[Record]], type[Exception], str]] = [
        ({"d": []}, DataError, "d: has no prompts"),
        ({"d": [*records(2), unanswered]}, DataError, "t:9: has no reference"),
        ({"d": [*records(2), records(1)[0]]}, DataError, "two rows have the id 't:0'"),
        ({"../d": records(1)}, ConfigError, r"data set '\.\./d'"),
    ]
    for datasets, error, message in cases:
        with pytest.raises(error, match=message):
            run(tokenizer, tmp_path, datasets=datasets)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("seeds", ()), ("seeds", (1, 1)), ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0)],
        *[("top_p", 1.1), ("top_k", -1), ("no_repeat_ngram", -1), ("batch_size", 0), ("limit", 0)],
        *[("metrics", ()), ("metrics", ("rouge_l", "rouge_l"))],
    ],
)
def test_settings_out_of_range_are_rejected(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} = "):
        EvaluationConfig(**{field: value})


def test_the_defaults_are_the_papers_protocol() -> None:
    config = EvaluationConfig()
    assert config.seeds == (10, 20, 30, 40, 50)
    assert (
        json.dumps(vars(config.sampling))
        == '{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram": 6, "teacher_share": 0.0, "teacher_top_k": 0}'
    )


def test_hashing_a_model_leaves_its_storages_resizable() -> None:
    """FSDP frees the storages of gathered parameters, which NumPy prevents permanently."""
    model = network()
    assert model_hash(model) == model_hash(network())
    assert all(parameter.untyped_storage().resizable() for parameter in model.parameters())


def test_settings_have_no_key_for_mixtures(tokenizer: Any, tmp_path: Path) -> None:
    run(tokenizer, tmp_path)
    sampling = files.read_json(tmp_path / "settings.json")["sampling"]
    assert sampling.keys() == {"temperature", "top_p", "top_k", "no_repeat_ngram"}


def test_a_category_of_a_row_is_kept_with_its_answer():
    """An answer of an earlier version has no category; the line gets it when the evaluation resumes."""
    line = {"id": "a:1", "prompt": "?", "response": "!", "references": ["!"], "tokens": 1, "finished": True}
    record = Record(record_id="a:1", prompt=RawPrompt("?"), references=("!",), category="open_qa")
    assert with_metrics(line, record, []) == {**line, "category": "open_qa"}
    assert with_metrics({**line, "category": "other"}, replace(record, category=""), []) == line
