"""Whatever a recipe, an override, a sweep or a row holds: it is read, or refused in one typed line.

The readers of JSON and YAML are tried with noise, and with sound trees in which a value or two were changed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from redistill.config import parse
from redistill.config.parse import parse_override
from redistill.config.run import decode_run, encode_run, load_config, override_run
from redistill.data.bad_rows import BadRow
from redistill.data.corpus import load_corpus
from redistill.data.forms import parse_row
from redistill.data.reader import read_records
from redistill.errors import ConfigError
from redistill.runs.sweep_recipe import cells, read_sweep
from tests.faults.noise import (
    KEYS,
    PIECES,
    TEXTS,
    VALUES,
    changed,
    fuzzed,
    is_one_line,
    json_text,
    places,
    read_or_refused,
)
from tests.worlds import gpt2_tokenizer

ROOT = Path(__file__).parents[2]

# --- recipes ------------------------------------------------------------------------------------------------------------

RECIPES = [encode_run(load_config(path)) for path in sorted((ROOT / "recipes").glob("s*.yaml"))]
RECIPES.append(
    encode_run(decode_run({"name": "r", "method": "minillm", "student": {"model": "s"}, "teacher": {"model": "t"}}, "r"))
)


def same_again(run: Any) -> None:
    """A run that was accepted is written as JSON and read as the same."""
    if run is not None:
        told = json.loads(json.dumps(encode_run(run), allow_nan=False))
        assert decode_run(told, "again") == run


@given(st.sampled_from(RECIPES).flatmap(changed))
@fuzzed("a changed recipe")
def test_a_changed_recipe(tree: dict[str, Any]) -> None:
    same_again(read_or_refused(lambda: decode_run(tree, "mine.yaml")))


@given(st.dictionaries(st.one_of(KEYS, st.sampled_from(sorted(RECIPES[0]))), VALUES, max_size=6))
@fuzzed("any tree as a recipe")
def test_any_tree_as_a_recipe(tree: dict[str, Any]) -> None:
    same_again(read_or_refused(lambda: decode_run(tree, "mine.yaml")))


PATHS = st.sampled_from(sorted({".".join(map(str, path)) for tree in RECIPES for path in places(tree)}))


@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.builds("{}={}".format, st.one_of(PATHS, TEXTS), st.one_of(TEXTS, VALUES))),
        max_size=3,
    )
)
@fuzzed("overrides")
def test_any_override(overrides: list[str]) -> None:
    run = read_or_refused(lambda: override_run(RECIPES[0], map(parse_override, overrides), "mine.yaml"))
    if run is not None:
        assert decode_run(encode_run(run), "again") == run


YAML_PIECES = [
    "- ",
    ": ",
    "? ",
    "&a ",
    "*a",
    "!!int ",
    "!!set ",
    "!x ",
    "|\n",
    ">\n",
    "[",
    "]",
    "{",
    "}",
    ",",
    "'",
    '"',
    "#",
    "\n",
    "  ",
]
YAML_PIECES += [
    "name",
    "seed",
    "0x1F",
    "1:30",
    "2024-13-45",
    "~",
    "<<",
    "---",
    "...",
    "%YAML 9.9\n",
    "\t",
    "\\u0000",
    "\r",
    "\ufeff",
]
YAML_TEXTS = st.one_of(
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.lists(st.sampled_from(YAML_PIECES), max_size=25).map(lambda pieces: "".join(pieces).encode()),
    VALUES.map(lambda value: yaml.safe_dump({"a": value}).encode("utf-8", "surrogatepass")),
)


@given(YAML_TEXTS)
@fuzzed("YAML")
def test_any_text_as_yaml(text: bytes) -> None:
    tree = read_or_refused(lambda: parse.parse_yaml(text, "mine.yaml"))
    if tree is not None:
        read_or_refused(lambda: decode_run(tree, "mine.yaml"))


@given(st.sampled_from(RECIPES).flatmap(json_text))
@fuzzed("YAML with pieces")
def test_a_recipe_with_pieces_of_text(text: str) -> None:
    tree = read_or_refused(lambda: parse.parse_yaml(text.encode("utf-8", "surrogatepass"), "mine.yaml"))
    if tree is not None:
        same_again(read_or_refused(lambda: decode_run(tree, "mine.yaml")))


@pytest.mark.parametrize("text", ["1:30", "190:20:30", "-1:30", "1:2.5", "1:" * 400 + "1.0"])
def test_a_number_in_base_60_is_a_text(text: str) -> None:
    assert parse_override(f"name={text}").value == text
    with pytest.raises(ConfigError, match="must be a whole number"):
        override_run(RECIPES[0], [parse_override(f"seed={text}")], "mine.yaml")


SWEEP = {
    "name": "s",
    "base": {"name": "b", "student": {"model": "s"}},
    "seeds": [1, 2],
    "rows": {"a": {"method": "sft"}, "b": {"training.updates": 3}},
}


@given(changed(SWEEP))
@fuzzed("a changed sweep")
def test_a_changed_sweep(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")

    def planned() -> None:
        for cell in cells(read_sweep(path)):
            override_run(cell.tree, cell.overrides, "sweep.yaml")

    read_or_refused(planned)


def bomb(levels: int, width: int) -> str:
    """YAML of few bytes that unfolds into width ** levels values."""
    lines = ["a0: &a0 x"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels + 1)]
    return "\n".join([*lines, f"name: *a{levels}"])


@pytest.mark.parametrize(
    "text",
    [
        *(
            bomb(9, 5),
            bomb(24, 2),
            "name: &a [*a]",
            "name: &a {b: *a}",
            "a: &a {<<: *a}",
            "[" * 100_000,
            "{a: " * 5000,
            "- " * 5000,
        ),
        *("\n".join(f"k{n}: 1" for n in range(5_000)), "name: 0x" + "f" * 200_000, "seed: " + "9" * 5000, "a" * 1_000_001),
        *(
            "name: " + "!!python/tuple " * 3,
            "? [a, b]\n: 1",
            "? {a: b}\n: 1",
            "name: !!binary '%'",
            "name: !!timestamp x",
            "a: 1\na: 2",
        ),
        *(
            'name: "\\ud800"',
            'name: "\\0"',
            'name: "\\e[31m"',
            "\x00",
            "\xff\xfe",
            "name: 1\n...\nname: 2",
            "--- a\n--- b",
            "!!map [1]",
        ),
    ],
    ids=range(26),
)
def test_yaml_that_is_made_to_hurt(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "a" + ".a" * 30_000 + "=1",
        "objective" + ".a" * 3000 + "=1",
        "name=" + "[" * 50_000,
        "=",
        "a",
        "a\nb=[",
        "seed=" + "9" * 5000,
    ],
)
def test_an_override_that_is_made_to_hurt(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override_run(RECIPES[0], [parse_override(override)], "mine.yaml")
    assert is_one_line(caught.value)


# --- rows ---------------------------------------------------------------------------------------------------------------

ROW_KEYS = st.sampled_from(
    ["instruction", "input", "output", "prompt", "completion", "messages", "conversations", "response", "context"]
)
TURNS = st.fixed_dictionaries(
    {}, optional={"role": st.one_of(TEXTS, st.just("user")), "content": VALUES, "from": TEXTS, "value": VALUES}
)
ROWS = st.one_of(VALUES, st.dictionaries(st.one_of(ROW_KEYS, KEYS), st.one_of(VALUES, st.lists(TURNS, max_size=4)), max_size=5))


@given(ROWS)
@fuzzed("a row")
def test_any_value_as_a_row(row: Any) -> None:
    try:
        parsed = parse_row(row)
    except BadRow as error:
        assert "\n" not in str(error)
    else:
        assert parsed.references and all(isinstance(text, str) for text in parsed.references)


LINES = st.one_of(
    st.binary(max_size=40),
    ROWS.map(lambda row: json.dumps(row).encode()),
    ROWS.flatmap(json_text).map(lambda text: text.encode("utf-8", "surrogatepass")),
    PIECES.map(str.encode),
    st.sampled_from([b"\xef\xbb\xbf", b"[]"]),
)


@given(st.lists(LINES, max_size=5), st.sampled_from([".jsonl", ".json"]))
@fuzzed("a file of rows")
def test_any_bytes_as_a_file_of_rows(tmp_path: Path, lines: list[bytes], suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\n".join(lines))
    found = read_or_refused(lambda: read_records(path, max_bad_rows=3))
    assert found is None or len(found[0]) == found[1].num_rows > 0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return gpt2_tokenizer()


@given(st.lists(LINES, min_size=1, max_size=4))
@fuzzed("a corpus")
def test_any_bytes_as_a_corpus(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, lines: list[bytes]) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "a"}', *lines]))
    read_or_refused(lambda: load_corpus([path], tokenizer, block_tokens=2))
