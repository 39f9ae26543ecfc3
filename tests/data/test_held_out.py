"""Validation rows are the first rows that validation can use, and messages name the set and the true reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from redistill.config.sections import DataConfig
from redistill.data.held_out import first_usable
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError, DataError
from redistill.runs.load import load_data
from redistill.storage.files import read_lines
from tests.worlds import gpt2_tokenizer

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CHAT = TokenizeConfig(template="chat", prompt_tokens=60)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = gpt2_tokenizer()
    found.chat_template = NO_SYSTEM
    return found


def talk(k: int, system: bool = False, words: int = 1) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"Where is cat {k}? " * words}]
    first = [{"role": "system", "content": "Be terse."}] if system else []
    return {"messages": [*first, *asked, {"role": "assistant", "content": f"In barn {k}."}]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(train: str, **fields: Any) -> DataConfig:
    return DataConfig(train=(train,), **{"validation_rows": 3, "tokens": CHAT, **fields})


def load(found: DataConfig, tokenizer: Any, **options: Any) -> Any:
    return load_data(found, tokenizer, 1, **{"rejected": None, "report": str, **options})


def ids(records: Any) -> list[str]:
    return [record.record_id for record in records]


def test_rows_that_the_template_refuses_and_long_prompts_are_not_held_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*[talk(k, system=True) for k in range(16)], talk(16, words=50), *[talk(k) for k in range(17, 26)]]
    found = load(config(write(tmp_path / "a.jsonl", rows)), tokenizer, rejected=tmp_path / "rejected.jsonl")
    assert ids(found.validation) == ["a:18", "a:19", "a:20"] == ids(e.record for e in found.validation_examples)
    assert ids(e.record for e in found.train) == [f"a:{k}" for k in range(21, 27)]
    assert found.manifest["kept"] | {"dropped": 17, "too long": 1, "nothing to learn": 16} == found.manifest["kept"]
    assert [row["line"] for row in read_lines(tmp_path / "rejected.jsonl")] == list(range(1, 18))


def test_the_rows_before_the_last_one_are_searched_in_growing_blocks(tmp_path: Path, tokenizer: Any) -> None:
    rows = [talk(k, system=k < 40) for k in range(45)]
    records, _ = read_records(write(tmp_path / "a.jsonl", rows))
    found = first_usable(records, 2, tokenizer, CHAT)
    assert found.indices.tolist() == [40, 41] and [row.index for row in found.rejected] == list(range(40))
    few = first_usable(records, 9, tokenizer, CHAT)
    assert few.indices.tolist() == [40, 41, 42, 43, 44] and len(few.rejected) == 40


def test_too_few_usable_rows_are_an_error_with_the_true_reason(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", [talk(k, system=k < 16) for k in range(18)])
    with pytest.raises(
        ConfigError, match=r"validation can use 2 of them \(.*a\.jsonl:1: .*System role not supported.*lower"
    ) as caught:
        load(config(path), tokenizer)
    assert "prompt_tokens" not in str(caught.value)


def test_validation_data_is_called_so_and_its_rejected_rows_are_listed(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path / "a.jsonl", [talk(k) for k in range(6)])
    held = write(tmp_path / "v.jsonl", [talk(k, system=k % 2 == 0) for k in range(50, 58)])
    found = load(config(train, validation=held), tokenizer, rejected=tmp_path / "rejected.jsonl")
    assert ids(found.validation) == ["v:2", "v:4", "v:6"] and len(found.train) == 6
    assert [row["line"] for row in read_lines(tmp_path / "rejected.jsonl")] == [1, 3, 5]
    with pytest.raises(DataError, match=r"validation data: .*v\.jsonl:1: .*System role"):
        load(config(train, validation=held, max_bad_rows=2), tokenizer)
    with pytest.raises(
        DataError, match=r"^validation data: none of 2 records is left: 2 were rejected \(first: w:1: .*System role"
    ):
        load(config(train, validation=write(tmp_path / "w.jsonl", [talk(k, system=True) for k in (60, 61)])), tokenizer)


def test_a_test_set_is_named_before_training(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path / "a.jsonl", [talk(k) for k in range(6)])
    test = write(tmp_path / "t.jsonl", [talk(70), talk(71, system=True)])
    with pytest.raises(DataError, match=r"^test set mine: t:2: .*System role not supported"):
        load(config(train, tests={"mine": test}), tokenizer)
