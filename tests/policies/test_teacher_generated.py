"""The teacher's text: each prompt is answered once in a run, in full batches, and stored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redistill.contracts import Draw, GenerationRequest, Processes, Sampling
from redistill.errors import DataError
from redistill.policies import Policy, TeacherGenerated
from redistill.teachers.local import LocalTeacher
from tests.policies.fixture import (
    RESPONSE_TOKENS,
    SEED,
    FakeEngine,
    PolicyFixture,
    ending_model,
    ids,
    in_processes,
    make_fixture,
)

FILE = "teacher-responses.jsonl"
BATCH = 8


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


class Recorder:
    """The fixture's teacher, with a record of its requests."""

    def __init__(self, fixture: PolicyFixture) -> None:
        self._generate, self.calls = fixture.tools.teacher.generate, []

    def generate(self, requests: Any, sampling: Any) -> Any:
        self.calls.append([request.stream for request in requests])
        return self._generate(requests, sampling)

    @property
    def streams(self) -> list[tuple[Any, ...]]:
        return [stream for call in self.calls for stream in call]


def _reject(requests: Any, sampling: Any) -> Any:
    raise AssertionError(f"asked to generate again: {[request.stream for request in requests]}")


nobody = FakeEngine(_reject)


def run(policy: Policy, steps: int = 5) -> list[Draw]:
    return [policy.draw(step) for step in range(steps)]


def answers(draws: list[Draw]) -> list[Any]:
    """The training sequences of each draw."""
    return [ids(draw.with_role("distillation")) for draw in draws]


def lines_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_answers_are_generated_by_the_teacher(fixture: PolicyFixture) -> None:
    for sequence in fixture.policy(TeacherGenerated(temperature=0.7, top_p=0.9)).draw(0).with_role("distillation"):
        stream = ("teacher-response", sequence.sample)
        request = GenerationRequest(prompt_ids=sequence.prompt_ids, max_new_tokens=RESPONSE_TOKENS, seed=SEED, stream=stream)
        (generation,) = fixture.tools.teacher.generate([request], Sampling(temperature=0.7, top_p=0.9))
        assert sequence.response_ids == generation.token_ids and sequence.origin == "teacher"


def test_each_prompt_is_answered_once_in_a_run_and_batches_are_full(fixture: PolicyFixture) -> None:
    recorder = Recorder(fixture)
    run(fixture.policy(TeacherGenerated(), teacher=recorder, at_once=12), 12)
    assert [len(call) for call in recorder.calls] == [12, 8], "twenty prompts in blocks of twelve"
    assert sorted(recorder.streams) == [("teacher-response", example.sample) for example in fixture.examples]


def test_a_step_is_answered_even_if_it_is_more_than_a_block(fixture: PolicyFixture) -> None:
    recorder = Recorder(fixture)
    fixture.policy(TeacherGenerated(), teacher=recorder, at_once=3).draw(0)
    assert [len(call) for call in recorder.calls] == [BATCH]


def test_nothing_is_generated_for_steps_after_the_last(fixture: PolicyFixture) -> None:
    recorder = Recorder(fixture)
    run(fixture.policy(TeacherGenerated(), teacher=recorder, updates=1), 1)
    assert [len(call) for call in recorder.calls] == [BATCH]


def test_a_resume_generates_nothing_again(fixture: PolicyFixture, tmp_path: Path) -> None:
    first = run(fixture.policy(TeacherGenerated(), folder=tmp_path))
    again = run(fixture.policy(TeacherGenerated(), folder=tmp_path, teacher=nobody))
    assert answers(again) == answers(first)
    assert len(lines_of(tmp_path)) == 1 + len(fixture.examples)


def test_a_configured_store_is_used_instead_of_the_run_folder(fixture: PolicyFixture, tmp_path: Path) -> None:
    node = TeacherGenerated(store=str(tmp_path / "shared" / "answers.jsonl"))
    run(fixture.policy(node, folder=tmp_path / "one"))
    run(fixture.policy(node, folder=tmp_path / "two", teacher=nobody, batch_size=4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared"]


def test_only_an_incomplete_line_is_generated_again(fixture: PolicyFixture, tmp_path: Path) -> None:
    first = run(fixture.policy(TeacherGenerated(), folder=tmp_path))
    path = tmp_path / FILE
    whole = lines_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    recorder = Recorder(fixture)
    again = run(fixture.policy(TeacherGenerated(), folder=tmp_path, teacher=recorder))
    assert answers(again) == answers(first)
    assert recorder.streams == [("teacher-response", whole[-1]["sample"])]
    assert lines_of(tmp_path) == whole


def test_two_processes_generate_a_part_each_and_one_writes_the_file(fixture: PolicyFixture, tmp_path: Path) -> None:
    whole = run(fixture.policy(TeacherGenerated(), folder=tmp_path / "one", at_once=8))
    recorders = [Recorder(fixture), Recorder(fixture)]

    def process(rank: int, gather: Any) -> list[Draw]:
        tools = {"folder": tmp_path / "two", "teacher": recorders[rank], "at_once": 4}
        return run(fixture.policy(TeacherGenerated(), processes=Processes(rank, 2, gather), **tools))

    shares = in_processes(2, process)
    for step, draw in enumerate(whole):
        assert [found for share in shares for found in answers(share)[step]] == ids(draw.with_role("distillation"))
    assert [[len(call) for call in recorder.calls] for recorder in recorders] == [[4, 4, 2]] * 2
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")


def test_processes_use_a_store_that_only_the_main_one_can_read(fixture: PolicyFixture, tmp_path: Path) -> None:
    run(fixture.policy(TeacherGenerated(), folder=tmp_path))

    def process(rank: int, gather: Any) -> list[Draw]:
        folder = tmp_path if rank == 0 else tmp_path / "another machine"
        tools = {"folder": folder, "teacher": nobody}
        return run(fixture.policy(TeacherGenerated(), processes=Processes(rank, 2, gather), **tools))

    in_processes(2, process)


def test_a_changed_prompt_is_answered_again(fixture: PolicyFixture, tmp_path: Path) -> None:
    run(fixture.policy(TeacherGenerated(), folder=tmp_path))
    last = fixture.gold().all_items(2)[3].example.sample  # not one of those that identify the data set
    changed = [
        replace(
            example,
            prompt_ids=(*example.prompt_ids, 9),
            token_ids=(*example.token_ids, 9),
            supervised=(*example.supervised, True),
        )
        if example.sample == last
        else example
        for example in fixture.examples
    ]
    recorder = Recorder(fixture)
    run(replace(fixture, examples=changed).policy(TeacherGenerated(), folder=tmp_path, teacher=recorder))
    assert recorder.streams == [("teacher-response", last)]


@pytest.mark.parametrize(
    ("node", "tools", "said"),
    [
        (TeacherGenerated(), {"seed": 5}, "its answers have seed = 4, and this run has 5"),
        (TeacherGenerated(top_p=0.5), {}, "its answers have top_p = 1.0, and this run has 0.5"),
        (TeacherGenerated(), {"response_tokens": 7}, "its answers have response_tokens = 10, and this run has 7"),
    ],
)
def test_answers_of_other_settings_are_rejected(fixture: PolicyFixture, tmp_path: Path, node, tools, said) -> None:
    run(fixture.policy(TeacherGenerated(), folder=tmp_path))
    with pytest.raises(DataError) as caught:
        run(fixture.policy(node, folder=tmp_path, **tools))
    assert f"{tmp_path / FILE}: {said}; set policy.store to another file, or delete this file" in str(caught.value)


def test_answers_of_another_teacher_are_rejected_and_rounding_is_tolerated(fixture: PolicyFixture, tmp_path: Path) -> None:
    run(fixture.policy(TeacherGenerated(), folder=tmp_path))
    other = LocalTeacher(ending_model(fixture.tokenizer, 3), vocabulary=len(fixture.tokenizer), device="cpu")
    with pytest.raises(DataError, match="its answers have teacher_cross_entropy = "):
        run(fixture.policy(TeacherGenerated(), folder=tmp_path, scorer=fixture.scorer(teacher=other)))
    header, *rest = lines_of(tmp_path)
    header["teacher_cross_entropy"] += 0.005
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in [header, *rest]))
    run(fixture.policy(TeacherGenerated(), folder=tmp_path, teacher=nobody))


@pytest.mark.parametrize("content", ["", '{"instruction": "Name a bird."}\n', "[1, 2]\n", "notes without a line break"])
def test_a_file_that_is_no_store_is_rejected_and_unchanged(fixture: PolicyFixture, tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="is not a file of teacher answers"):
        fixture.policy(TeacherGenerated(store=str(path))).draw(0)
    assert path.read_text() == content
