"""`redistill data check`: faults by kind, duplicates, overlap with test sets, lengths; exit code 2 for unusable rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from redistill.cli.main import main
from redistill.data.check import Lengths, Repeat, check_data
from redistill.data.repeats import first_of_each, loose_question, question
from redistill.data.tokenize import TokenizeConfig
from redistill.records import Instruction, RawPrompt, Record


def record(prompt: str, *answers: str) -> Record:
    return Record(record_id="r:1", prompt=RawPrompt(prompt), references=answers)


def row(instruction: str, output: str = "Yes.") -> dict[str, Any]:
    return {"instruction": instruction, "output": output}


def rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    return [row(f"Name the number {k}.") for k in range(offset, offset + count)]


def write_rows(path: Path, made: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in made), encoding="utf-8")
    return str(path)


# --- repeats ------------------------------------------------------------------------------------------------------------


def test_duplicates_have_equal_prompts_and_answers_verbatim() -> None:
    records = [record("a", "x"), record("a", "y"), record("a", "x"), record("a ", "x"), record("a", "x", "y"), record("a", "x")]
    assert first_of_each(records) == [0, 1, 0, 3, 4, 0]


@pytest.mark.parametrize(
    ("one", "other", "exactly", "loosely"),
    [
        ("Name a river.", " Name  a\nriver. ", True, True),
        ("Name a river.", "name a RIVER", False, True),
        ("Name a river.", "\u201cName a river!\u201d", False, True),
        ("Name a river.", "Ｎａｍｅ a river。", False, True),
        ("2 + 2", "2 - 2", False, False),
        ("Is C# old?", "Is C old?", False, False),
        ("What is 5%", "What is 5", False, False),
        ("Name a river.", "Name a river in France.", False, False),
    ],
)
def test_questions_ignore_white_space_and_loose_questions_also_case_and_outer_punctuation(
    one: str, other: str, exactly: bool, loosely: bool
) -> None:
    assert (question(record(one)) == question(record(other))) is exactly
    assert (loose_question(record(one)) == loose_question(record(other))) is loosely


def test_a_question_includes_instruction_and_input() -> None:
    assert question(Record(record_id="r:1", prompt=Instruction("Add.", "1 2"), references=())) != question(record("Add."))
    assert question(Record(record_id="r:1", prompt=Instruction("Add."), references=())) == question(record("Add."))


# --- checks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[7], [1, 2], list(range(100)), list(range(100, 0, -1))])
def test_lengths_agree_with_the_definition_of_each_statistic(numbers: list[int]) -> None:
    found = Lengths.of(numbers)
    assert (found.shortest, found.longest) == (min(numbers), max(numbers))
    assert found.mean == pytest.approx(sum(numbers) / len(numbers))
    for value, fraction in ((found.median, 0.5), (found.longest_95, 0.95)):
        assert sum(n <= value for n in numbers) >= fraction * len(numbers) > sum(n < value for n in numbers)


def test_rows_with_the_prompt_of_a_test_row_are_found_with_its_source_and_line(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [row("Name a river."), row("name a  LAKE"), row("Name a hill.")])
    test = write_rows(tmp_path / "mine.jsonl", [row("Name a lake.", "Erie"), row("Name  a river.", "Rhine")])
    check, test_check = check_data([(train, "train")], {"mine": test})
    assert check.repeats == (
        Repeat(line=1, of=f"{test}:2", how="exact"),
        Repeat(line=2, of=f"{test}:1", how="normalised"),
    )
    assert not check.is_sound and test_check.is_sound and test_check.test == "mine"


def test_duplicates_are_found_across_files_and_are_allowed(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", rows(4))
    other = write_rows(tmp_path / "other.jsonl", rows(3, 3))
    first, second = check_data([(one, "train"), (other, "train")], {})
    assert first.repeats == () and second.repeats == (Repeat(line=1, of=f"{one}:4", how="duplicate"),)
    assert first.is_sound and second.is_sound


@pytest.mark.parametrize("data", [b"", b"[1, 2", None], ids=["empty", "cut array", "missing"])
def test_an_unreadable_source_is_unsound_and_the_others_are_still_checked(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "broken.json"
    if data is not None:
        path.write_bytes(data)
    good = write_rows(tmp_path / "good.jsonl", rows(2))
    broken, fine, test = check_data([(str(path), "train"), (good, "train")], {"mine": str(path)})
    assert not broken.readable and not broken.is_sound and broken.verdict
    assert fine.is_sound and fine.rows == 2 and not test.is_sound


class Letters:
    """A tokenizer with a token for each letter; "~" has none."""

    eos_token_id, bos_token_id = 0, None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text if letter != "~"]}


def test_lengths_count_left_out_prompts_truncated_answers_and_rows_without_target_tokens(tmp_path: Path) -> None:
    made = [{"prompt": "x" * n, "completion": "y" * m} for n, m in ((5, 3), (9, 4), (12, 30))]
    path = write_rows(tmp_path / "train.jsonl", [*made, {"prompt": "x", "completion": "~"}])
    limits = TokenizeConfig(prompt_tokens=9, response_tokens=4)
    (check,) = check_data([(path, "train")], {}, tokenizer=Letters(), tokens=limits)
    assert check.tokens is not None
    assert (check.tokens.prompts.shortest, check.tokens.prompts.longest, check.tokens.prompts_left_out) == (5, 12, 1)
    assert (check.tokens.answers.shortest, check.tokens.answers.longest, check.tokens.answers_cut) == (4, 31, 2)
    assert [(found.line, found.fault) for found in check.unusable] == [(4, "nothing to learn")] and check.rows == 3


def test_a_file_without_target_tokens_has_faults_and_no_lengths(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{"prompt": "x", "completion": "~"}])
    (check,) = check_data([(path, "train")], {}, tokenizer=Letters())
    assert check.tokens is None and check.faults == {"nothing to learn": 1} and check.rows == 0


# --- the command --------------------------------------------------------------------------------------------------------


def test_a_sound_file_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "train.jsonl", [*rows(4), rows(1)[0]])
    assert main(["data", "check", path]) == 0
    printed = capsys.readouterr()
    assert "5 usable rows: instruction/input/output, 5 rows" in printed.out and printed.err == ""
    assert f"1  duplicates of an earlier row: line 5 repeats {path}:1" in printed.out and "1 checked, no faults" in printed.out


def test_faults_are_counted_by_kind_and_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "train.jsonl", [*rows(4), row(""), row(""), {"x": 1}])
    test = write_rows(tmp_path / "test.jsonl", rows(1))
    assert main(["data", "check", path, "--against", f"mine={test}"]) == 2
    printed = capsys.readouterr()
    assert "2  empty text: line 5: 'instruction' is empty" in printed.out and "1  unknown keys: line 7" in printed.out
    assert f"1  with the prompt of a test row; a run leaves them out: line 1 repeats {test}:1" in printed.out
    assert printed.err.startswith("redistill: data check: 1 of 2 sources have faults") and printed.err.count("\n") == 1


def test_json_has_the_same_counts_and_lists_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "train.jsonl", [*rows(4), row("\x1b[31m\x00"), rows(1)[0]])
    assert main(["data", "check", path, "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)["sources"]
    assert (found["rows"], found["faults"], found["repeats"]) == (5, {"NUL character": 1}, {"duplicate": 1})
    assert found["unusable"][0]["line"] == 5 and found["repeated"][0]["of"] == f"{path}:1" and found["sound"] is False


def test_a_recipe_provides_data_and_test_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows(4))
    held = write_rows(tmp_path / "held.jsonl", rows(2, 2))
    data = {"train": [train], "validation": held, "tests": {"mine": train}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "x", "method": "sft", "student": {"model": "none"}, "data": data}))  # JSON is YAML
    assert main(["data", "check", "--recipe", str(recipe)]) == 2
    out = capsys.readouterr().out
    assert out.count("a run leaves them out: line 1 repeats") == 2 and "2  duplicates of an earlier row" in out


def test_without_sources_it_is_an_error_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check"]) == 2
    assert "no data to check; pass a path, or --recipe RECIPE" in capsys.readouterr().err
