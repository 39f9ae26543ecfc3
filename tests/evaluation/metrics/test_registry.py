"""The registry of metrics, and that no other file of the package contains a metric's name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import redistill
from redistill.evaluation.metrics import DEFAULT, METRICS
from redistill.records import Instruction, Record
from redistill.reports.folders import BEFORE_METRICS_HAD_NAMES

SOURCE = Path(redistill.__file__).parent
MAY_NAME_ONE = {
    "config/sections.py",  # the docstring of a default
    "training/schedule.py",  # a default
    "reports/folders.py",  # folders that were written before scores.json described its metrics
    "records.py",  # an example in a docstring, like the next three
    "errors.py",
    "runs/run.py",
    "data/tasks/task.py",
    "runs/record.py",  # the version of the package rouge-score goes into run.json
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_its_key_and_scores_a_right_answer_best(name):
    metric = METRICS[name]
    record = Record(record_id="r", prompt=Instruction("Which animal?"), references=("2 cats", "the 2 cats"))
    right, wrong = (metric.scored(answer, record) for answer in ("The 2 cats.", "seven boats"))
    assert metric.name == name and metric.needs == "answers"
    assert metric.goodness(right) > metric.goodness(wrong)
    assert metric.aggregated([right, wrong]) == (right + wrong) / 2


def test_default_metrics_have_the_titles_and_units_assumed_for_old_folders():
    assert [vars(measure) for measure in BEFORE_METRICS_HAD_NAMES] == [
        {"name": name, **METRICS[name].described} for name in DEFAULT
    ]


def test_importing_the_metrics_imports_neither_torch_nor_nltk():
    code = "import sys, redistill.evaluation.metrics; print(sorted({'torch', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_only_listed_files_contain_a_metric_name():
    named = {
        path.relative_to(SOURCE).as_posix()
        for path in (*SOURCE.rglob("*.py"), *SOURCE.rglob("*.html"))
        if re.search("rouge|exact.match", path.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert {name for name in named if not name.startswith("evaluation/metrics/")} == MAY_NAME_ONE
