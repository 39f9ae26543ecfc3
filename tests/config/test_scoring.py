"""Metrics and test sets by name: valid names, errors of one line, and the metrics of a test set."""

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest

from redistill.config.run import Run, decode_run, encode_run
from redistill.config.scoring import named_tasks
from redistill.data.check import check_data
from redistill.data.tasks import TASKS, Task
from redistill.errors import ConfigError
from redistill.records import Metric
from redistill.runs.stages import stages

LEAST = {"name": "r", "method": "kd", "teacher": {"model": "t"}, "student": {"model": "s"}}


def metric(name: str = "mine", **changes: Any) -> Metric:
    return Metric(**{"name": name, "title": name, "score": lambda answer, record: 1.0} | changes)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An external module that is already imported."""
    module = ModuleType("scoring_parts")
    module.MINE, module.PAIR = metric(), metric("pair", needs="pair")
    module.RIVAL = metric("rouge_l")
    module.SET = Task(name="own", description="own", hub_name="a/b", metrics=(module.MINE,))
    module.BARE = Task(name="bare", description="no hub name")
    module.SLASHED = Task(name="a/b", description="not a file name")
    module.UNSUITED = Task(name="unsuited", description="own", hub_name="a/b", metrics=(module.PAIR,))
    module.TWIN = Task(name="dolly", description="same name as another", hub_name="a/b")
    module.CLASH = Task(name="clash", description="own", hub_name="a/b", metrics=(module.RIVAL,))
    module.NUMBER = 3
    monkeypatch.setitem(sys.modules, "scoring_parts", module)
    return module


def run(allow: tuple[str, ...] = ("scoring_parts",), **sections: Any) -> Run:
    return decode_run(LEAST | sections, "r.yaml", allow)


def error_of(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(**sections)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix("r.yaml: ")


def test_test_sets_and_validation_have_both_metrics_by_default() -> None:
    config = run(data={"tests": {"dolly": None, "mine": "mine.jsonl"}})
    assert {name: [m.name for m in found] for name, found in config.test_metrics.items()} == {
        "dolly": ["rouge_l", "exact_match"],
        "mine": ["rouge_l", "exact_match"],
    }
    assert [m.name for m in config.validation_metrics] == ["rouge_l", "exact_match"]


def test_a_test_sets_own_metrics_precede_those_of_the_recipe(parts: ModuleType) -> None:
    tests = {"scoring_parts:SET": None, "dolly": None}
    config = run(
        data={"tests": tests}, evaluation={"metrics": ["exact_match", "scoring_parts:MINE"]}, training={"choose_by": "mine"}
    )
    assert {name: [m.name for m in found] for name, found in config.test_metrics.items()} == {
        "own": ["mine", "exact_match"],
        "dolly": ["exact_match", "mine"],
    }
    assert [m.name for m in config.validation_metrics] == ["exact_match", "mine"]
    assert decode_run(encode_run(config), "run.json", ["scoring_parts"]) == config


def test_a_single_name_is_a_list_of_one() -> None:
    assert run(evaluation={"metrics": "rouge_l"}).evaluation.metrics == ("rouge_l",)


REJECTED = {
    "nearest name": (
        {"evaluation": {"metrics": ["rouge"]}},
        "evaluation.metrics = 'rouge': no such metric; did you mean 'rouge_l'?",
    ),
    "no name near": (
        {"evaluation": {"metrics": ["zzz"]}},
        "evaluation.metrics = 'zzz': no such metric; choose one of rouge_l, exact_match, chrf, final_number (",
    ),
    "none": ({"evaluation": {"metrics": []}}, "evaluation.metrics = []: must have at least one"),
    "twice": ({"evaluation": {"metrics": ["rouge_l", "rouge_l"]}}, "evaluation.metrics = ['rouge_l', 'rouge_l']: must have"),
    "no metric": (
        {"evaluation": {"metrics": ["scoring_parts:NUMBER"]}},
        "evaluation.metrics = 'scoring_parts:NUMBER': has the type int; must be",
    ),
    "no object": (
        {"evaluation": {"metrics": ["scoring_parts:MIEN"]}},
        "evaluation.metrics = 'scoring_parts:MIEN': module scoring_parts has no",
    ),
    "needs more": (
        {"evaluation": {"metrics": ["scoring_parts:PAIR"]}},
        "evaluation.metrics = 'scoring_parts:PAIR': the metric pair has needs = 'pair', which",
    ),
    "not allowed": (
        {"allow": (), "evaluation": {"metrics": ["scoring_parts:MINE"]}},
        "evaluation.metrics = 'scoring_parts:MINE': external code",
    ),
    "no mapping": (
        {"evaluation": {"metrics": {"scoring_parts:MINE": 1}}},
        "evaluation.metrics = {'scoring_parts:MINE': 1}: must be a list",
    ),
    "a number": ({"evaluation": {"metrics": [7]}}, "evaluation.metrics[0] = 7: must be text"),
    "one key": (
        {"evaluation": {"metrics": ["rouge_l", "scoring_parts:RIVAL"]}},
        "evaluation.metrics: two different metrics have the name rouge_l",
    ),
    "chosen by": (
        {"training": {"choose_by": "rouge"}},
        "training.choose_by = 'rouge': validation does not compute it; did you mean 'rouge_l'?",
    ),
    "chosen by an unlisted metric": (
        {"evaluation": {"metrics": ["exact_match"]}},
        "training.choose_by = 'rouge_l': validation does not compute it; choose one of exact_match, cross_entropy, or add it",
    ),
    "teacher chosen by": (
        {"teacher": {"model": "t", "finetune": {"choose_by": "kl"}}},
        "teacher.finetune.choose_by = 'kl': validation does not compute it; choose one of rouge_l, exact_match, cross_entropy",
    ),
    "student chosen by": (
        {"student": {"model": "s", "finetune": {"choose_by": "x"}}},
        "student.finetune.choose_by = 'x': validation",
    ),
    "no task": (
        {"data": {"tests": {"scoring_parts:NUMBER": None}}},
        "data.tests: 'scoring_parts:NUMBER': has the type int; must be a redistill.data",
    ),
    "no such task": ({"data": {"tests": {"doly": None}}}, "data.tests: no test set 'doly'; use 'dolly', or give"),
    "task without rows": (
        {"data": {"tests": {"scoring_parts:BARE": None}}},
        "data.tests: no test set 'bare'; use one of dolly",
    ),
    "task of a bad name": (
        {"data": {"tests": {"scoring_parts:SLASHED": "a.jsonl"}}},
        "data.tests: 'a/b': the name of a test set may contain",
    ),
    "task with an unsuited metric": (
        {"data": {"tests": {"scoring_parts:UNSUITED": None}}},
        "data.tests: 'scoring_parts:UNSUITED': the metric pair has needs",
    ),
    "two tasks of one name": (
        {"data": {"tests": {"dolly": None, "scoring_parts:TWIN": None}}},
        "data.tests: 'dolly' and 'scoring_parts:TWIN' would both be called dolly; rename or remove one",
    ),
    "a task's metric with the name of another": (
        {"data": {"tests": {"scoring_parts:CLASH": None}}},
        "evaluation.metrics of clash: two different metrics have the name rouge_l, but names are keys of result files",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_invalid_metrics_and_test_sets_are_rejected_on_one_line_before_anything_is_loaded(parts: ModuleType, case: str) -> None:
    sections, expected = REJECTED[case]
    assert error_of(**sections).startswith(expected)


def test_a_metric_that_is_not_imported_is_reported_with_the_flag() -> None:
    config = run()
    evaluation = dataclasses.replace(config.evaluation, metrics=("absent_parts:MINE",))
    with pytest.raises(
        ConfigError, match=r"evaluation\.metrics = 'absent_parts:MINE': not imported; add --allow-code absent_parts"
    ):
        dataclasses.replace(config, evaluation=evaluation)


def test_stages_use_the_runs_metrics_only_if_one_of_them_chooses_the_checkpoint(parts: ModuleType) -> None:
    def tuned(choose_by: str | None, metrics: list[str]) -> Any:
        teacher = {"model": "t", "finetune": {"choose_by": choose_by}}
        config = run(teacher=teacher, evaluation={"metrics": metrics}, training={"choose_by": "cross_entropy"})
        return stages(config)["teacher"]

    usual = tuned(None, ["rouge_l", "exact_match"])
    assert encode_run(tuned(None, ["scoring_parts:MINE"])) == encode_run(usual) and usual.training.choose_by == "rouge_l"
    own = tuned("mine", ["scoring_parts:MINE"])
    assert own.evaluation.metrics == ("scoring_parts:MINE",) and own.training.choose_by == "mine"


def test_a_known_name_is_that_test_set_also_with_a_file() -> None:
    found = named_tasks({"dolly": "mine.jsonl", "else": "other.jsonl"})
    assert [(task.name, path) for task, path in found.items()] == [("dolly", "mine.jsonl"), ("else", "other.jsonl")]
    assert TASKS["dolly"] in found
    assert [check.test for check in check_data([], found)] == ["dolly", "else"], "neither can be read, and both are reported"
