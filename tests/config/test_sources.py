"""Sources in a recipe: texts and sections, their columns, and what is refused when the recipe is read."""

from typing import Any

import pytest

from redistill.config.run import decode_run, encode_run
from redistill.data.sources import Source
from redistill.errors import ConfigError

RECIPE: dict[str, Any] = {"name": "r", "method": "sft", "student": {"model": "s"}}
SECTION = {"path": "owner/name", "config": "main", "split": "train[:1%]", "revision": "abc"}


def data(**fields: Any) -> Any:
    return decode_run({**RECIPE, "data": fields}, "mine.yaml").data


def test_a_source_is_a_text_or_a_section() -> None:
    found = data(train=[SECTION, "mine.parquet"], validation={"path": "v.csv"}, tests={"mine": SECTION, "other": "t.csv"})
    assert found.train == (Source(**SECTION), "mine.parquet")
    assert [source.path for source, _ in found.sources] == ["owner/name", "mine.parquet", "v.csv"]
    assert [split for _, split in found.sources] == ["train", "train", "validation"]
    assert {task.name: source.path for task, source in found.tasks.items()} == {"mine": "owner/name", "other": "t.csv"}


def test_columns_apply_to_every_source_without_its_own() -> None:
    own = {"path": "v.csv", "columns": {"prompt": "query", "completion": "reply"}}
    found = data(train="a.csv", validation=own, tests={"mine": "t.csv"}, columns={"prompt": "question"})
    assert [source.columns for source, _ in found.sources] == [{"prompt": "question"}, own["columns"]]
    assert [source.columns for source in found.tasks.values()] == [{"prompt": "question"}]


def test_a_recipe_with_sections_survives_printing() -> None:
    run = decode_run(
        {**RECIPE, "data": {"train": [SECTION, "a.csv"], "tests": {"x": SECTION}, "columns": {"prompt": "q"}}}, "r"
    )
    assert decode_run(encode_run(run), "again") == run


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"columns": {"promt": "q"}}, r"data\.columns\.promt: no such key of a row; did you mean 'prompt'"),
        ({"columns": {"tokens": "q"}}, r"data\.columns\.tokens: no such key of a row; choose among prompt"),
        ({"train": [{"path": "a", "columns": {"promt": "q"}}]}, r"data\.train\[0\]\.columns\.promt"),
        ({"train": [{"path": "a", "name": "q"}]}, r"data\.train\[0\]\.name: no such field; .*config"),
        ({"train": [{"config": "q"}]}, r"data\.train\[0\]\.path: missing"),
        ({"train": [5]}, r"data\.train\[0\] = 5: must be text or a mapping"),
        ({"validation": 5}, r"data\.validation = 5: must be text or a mapping"),
        ({"tests": {"mine": ["a"]}}, r"data\.tests\.mine = \['a'\]: must be text or a mapping"),
        ({"train": [{"path": "a", "trust_remote_code": True}]}, r"trust_remote_code: no such field"),
    ],
)
def test_an_invalid_source_is_an_error_of_one_line(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        data(**fields)
