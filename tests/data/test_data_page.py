"""docs/data.md: each form of row, file, recipe and message of the page is what the code reads and prints."""

import json
import re
from pathlib import Path

import pytest
import yaml

from redistill.config.capabilities import why_gold
from redistill.config.methods import METHODS
from redistill.config.run import decode_run
from redistill.data.bad_rows import BadRow
from redistill.data.columns import COLUMNS
from redistill.data.formats import FORMATS
from redistill.data.forms import parse_row
from redistill.data.sources import Source
from tests.data import test_whole_file

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_form_of_row_is_read() -> None:
    (block,) = blocks("json")
    forms = [parse_row(json.loads(line)).form for line in block.splitlines()]
    assert forms == ["instruction/input/output", "prompt/completion", "messages", "conversations"]


def test_every_ending_is_on_the_page_and_no_other() -> None:
    assert set(re.findall(r"`mine\.([a-z.]+)`", PAGE)) == set(FORMATS)
    keys = PAGE[PAGE.index("The keys are `prompt`") :].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", keys)) == set(COLUMNS)


def test_both_ways_of_writing_a_hub_data_set_are_read() -> None:
    first = yaml.safe_load(blocks("yaml")[0])
    whole = {"name": "page", "method": "sft", "student": {"model": "s"}}
    (train, _, validation), tests = (
        decode_run(whole | first, "page").data.sources,
        decode_run(whole | first, "page").data.tasks,
    )
    assert train[0] == Source(path="owner/name", config="CONFIG", revision="REVISION", split="train[:1%]", columns=None)
    assert validation[0] == Source(path="owner/name", config="CONFIG", revision="REVISION", split="validation", columns=None)
    assert [source.named_split("test") for source in tests.values() if source] == ["test[:500]"]


def test_the_messages_are_those_that_are_printed() -> None:
    unknown, refused = (block.strip() for block in blocks("text"))
    with pytest.raises(BadRow) as caught:
        parse_row({"question": "2 + 2?", "answer": "4"})
    assert str(caught.value) == unknown
    assert why_gold(METHODS["kd"]) == refused


def test_every_message_of_a_whole_file_is_one_that_a_test_provokes() -> None:
    table = PAGE[PAGE.index("| found | message contains |") :]
    messages = re.findall(r"\| `(.+?)` \|$", table, re.MULTILINE)
    tests = Path(test_whole_file.__file__).read_text(encoding="utf-8")
    tests += Path(__file__).with_name("test_sources.py").read_text(encoding="utf-8")
    assert len(messages) == 13 and [text for text in messages if text not in tests] == []
