"""Whatever a file holds that a resumed command reads: it is read, or refused in one typed line."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.config.run import encode_run
from redistill.contracts import ONE_PROCESS, Sampling
from redistill.data.rejected import RejectedRow, list_rejected
from redistill.evaluation.folder import SETTINGS, ResponseFiles, Tally, check_settings
from redistill.evaluation.metrics import METRICS
from redistill.evaluation.scores import earlier_scores
from redistill.policies.teacher import ResponseStore
from redistill.records import Instruction, Record
from redistill.runs.sweep import plan_sweep
from redistill.storage import files
from redistill.storage.json_text import JsonError, parse_json
from redistill.training.metrics import MetricsLog
from tests.faults.noise import JSON_PIECES, fuzzed, json_text, places, read_or_refused, written_json

DEEP = {"a": [1, {"b": [2.5, None, "x"]}], "c": {"d": True}}
LINES = [{"kind": "train", "step": 1, "loss": 2.5}, {"kind": "event", "step": 2, "event": "loss_spike", "samples": [1]}]


def lines_of(trees: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """The lines of a JSON Lines file: some are changed, and the last may lack its end."""
    line = st.one_of(st.sampled_from(trees).map(json.dumps), st.sampled_from(trees).flatmap(written_json), st.text(max_size=9))
    joined = st.lists(line, max_size=4).map("\n".join)
    return st.builds("{}{}".format, joined, st.sampled_from(["", "\n"])).map(lambda text: text.encode("utf-8", "surrogatepass"))


# --- JSON ---------------------------------------------------------------------------------------------------------------


@given(st.one_of(json_text(DEEP), written_json(DEEP)).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary())
@fuzzed("JSON")
def test_any_text_as_json(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    found = read_or_refused(lambda: files.read_json(path))
    assert json.loads(files.json_bytes(found)) == json.loads(files.json_bytes(found).decode("utf-8", "replace"))
    assert max((len(place) for place in places(found)), default=0) <= 100


@given(lines_of(LINES))
@fuzzed("lines of JSON")
def test_any_lines_of_json(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    if read_or_refused(lambda: files.read_lines(path)) is not None:
        MetricsLog(path).truncate_after(1)
        steps = [line.get("step") for line in files.read_lines(path) if isinstance(line, dict)]
        assert all(step <= 1 for step in steps if isinstance(step, int | float))


@pytest.mark.parametrize("number", range(len(JSON_PIECES)))
def test_what_json_does_not_allow_is_refused_in_one_line(number: int) -> None:
    """The standard library reads the first of these, and raises a RecursionError for others."""
    piece = JSON_PIECES[number]
    try:
        found = parse_json(piece)
    except JsonError as error:
        assert len(str(error)) < 100 and "\n" not in str(error)
    else:
        json.dumps(found, allow_nan=False)


# --- evaluation ---------------------------------------------------------------------------------------------------------

SETTING = {"schema": 1, "label": "student", "sampling": {"top_p": 1.0, "top_k": 0}, "seeds": [10], "datasets": {"toy": "f00d"}}
SCORED = {
    "settings": SETTING,
    "datasets": {
        "toy": {"seeds": {"10": {"rouge_l": 1.0}}, "teacher_forced": {"kl": 0.5}, "metrics": {"rouge_l": {"unit": "%"}}}
    },
}


@given(written_json(SETTING))
@fuzzed("settings of an evaluation")
def test_any_settings_of_an_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS).write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refused(lambda: check_settings(tmp_path, SETTING))


@given(written_json(SCORED))
@fuzzed("scores of an earlier evaluation")
def test_any_scores_of_an_earlier_evaluation(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refused(
        lambda: earlier_scores(path, SETTING, {"toy": {"rouge_l": {"unit": "%"}}}, forced=["kl"], decodings={"t0.8": [10]})
    )


RECORDS = [Record(record_id=f"toy:{n}", prompt=Instruction("a"), references=("b",)) for n in (1, 2)]
ANSWERS = [
    {"id": r.record_id, "prompt": "a", "response": "b", "references": ["b"], "rouge_l": 100.0, "tokens": 1, "finished": True}
    for r in RECORDS
]


@given(lines_of(ANSWERS))
@fuzzed("answers")
def test_any_answers_are_kept_or_generated_again(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "toy-seed10.jsonl").write_bytes(text)
    by_id = {line["id"]: line for line in ANSWERS}
    answerer: Any = SimpleNamespace(lines=lambda name, rows, seed, metrics: [by_id[record.record_id] for record, _ in rows])
    responses = ResponseFiles(answerer, Tally(None, 2), tmp_path, ONE_PROCESS, 2)
    found = read_or_refused(lambda: responses.complete("toy", [(r, (1,)) for r in RECORDS], 10, [METRICS["rouge_l"]]))
    if found is not None:
        assert [line["id"] for line in found] == ["toy:1", "toy:2"]
        assert all(isinstance(line["response"], str) and isinstance(line["rouge_l"], int | float) for line in found)


# --- data and policies --------------------------------------------------------------------------------------------------


@given(lines_of([{"source": "a", "line": 3, "reason": "is empty"}, {"source": "b", "line": 4, "reason": "is empty"}]))
@fuzzed("rejected rows")
def test_any_list_of_rejected_rows(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "rejected.jsonl"
    path.write_bytes(text)
    read_or_refused(lambda: list_rejected(path, "a", [RejectedRow(line=1, fault="not JSON", reason="not JSON")]))


HEADER = {"seed": 1, "temperature": 1.0, "top_p": 1.0, "response_tokens": 8, "end_ids": [0], "teacher_cross_entropy": None}
STORED = [HEADER, {"sample": 1, "prompt": "f00d", "token_ids": [1, 2]}]


@given(st.one_of(lines_of(STORED), lines_of(STORED).map(json.dumps(HEADER).encode().__add__(b"\n").__add__)))
@fuzzed("answers of a teacher")
def test_any_answers_of_a_teacher(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "teacher.jsonl"
    path.write_bytes(text)
    tools: Any = SimpleNamespace(seed=1, response_tokens=8, end_ids=(0,), scorer=None, processes=ONE_PROCESS)
    found = read_or_refused(lambda: ResponseStore(path, Sampling(), tools).read())
    for (sample, prompt), token_ids in (found or {}).items():
        assert isinstance(sample, int) and isinstance(prompt, str) and all(isinstance(token, int) for token in token_ids)


# --- runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The recipe of a sweep of one run, with the run.json of this run."""
    folder = tmp_path_factory.mktemp("sweep")
    recipe = {"name": "s", "base": {"student": {"model": "s"}, "method": "sft"}, "seeds": [1], "rows": {"a": {}}}
    (folder / "sweep.yaml").write_text(json.dumps(recipe))
    [entry] = plan_sweep(folder / "sweep.yaml", out=folder / "out").entries
    held = {"schema": 2, "name": "a-seed1", "status": "trained", "config": encode_run(entry.run), "commit": "f00d"}
    files.write_json(entry.run.folder / "run.json", held)
    yield folder


@given(st.data())
@fuzzed("run.json of a sweep")
def test_any_run_of_a_sweep(sweep: Path, data: st.DataObject) -> None:
    path = sweep / "out" / "a-seed1" / "run.json"
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(written_json(json.loads(before))).encode("utf-8", "surrogatepass"))
        read_or_refused(plan_sweep(sweep / "sweep.yaml", out=sweep / "out").statuses)
    finally:
        path.write_bytes(before)
