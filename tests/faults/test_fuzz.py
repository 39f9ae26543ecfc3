"""Whatever a recipe, a row, a manifest or a description of a run holds: it is read, or refused in one typed line.

The readers of JSON and YAML are tried with noise, and with sound files in which a value or two were changed.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redistill import checkpoint, decoding, files
from redistill.config import decode_run, encode_run, load_config, override_run
from redistill.data.forms import BadRow, parse_row
from redistill.data.reader import read_records
from redistill.errors import ConfigError, RedistillError
from redistill.experiments.compare import build_comparison
from redistill.experiments.matrix import cells, read_sweep
from redistill.experiments.report import build_report, summary_table
from redistill.run import tokens_of
from redistill.untrusted import printable
from tests.experiments.fabricated import write_method, write_run
from tests.faults.counts import trials

ROOT = Path(__file__).parents[2]

# --- what is thrown in --------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**63), 2**64, 10**400, -1]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, 1e308, 5e-324, -0.0]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "a\nb",
            "\x00",
            "\ud800",
            "\x1b[31m",
            "../../x",
            "/",
            "null",
            "1e3",
            "fkl",
            "mgsr",
            "a:B",
            "2 epochs",
            "10**9",
        ]
    ),
    st.sampled_from(["x" * 5000, "\u202e", "{{ 1 }}", "https://a:b@c", "~", "NaN", "auto", "teacher", "chat"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.one_of(TEXTS, st.sampled_from(["kind", "source", "seeds", "model", "rows", "divergence", "steps", "folder", "label"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


def tried(quick: int, whole: int) -> Callable[[Any], Any]:
    """How many examples; `make faults` tries 10,000 in all."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=trials(quick, whole), deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree but the tree itself."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """`tree` with one to three of its values replaced, taken out, or joined by a stranger."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        place = tree
        for key in path:
            place = place[key]
        act = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if act == "replace" or isinstance(place, list):
            place[last] = draw(VALUES)
        elif act == "remove":
            del place[last]
        else:
            place[draw(KEYS)] = draw(VALUES)
    return tree


def is_one_line(error: RedistillError) -> bool:
    """Whether an error is a line that a terminal can show whole: where, what and what to do."""
    told = str(error)
    return "\n" not in told and 10 < len(told) < 3000 and printable(told) == told


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused, which takes one typed line."""
    try:
        return read()
    except RedistillError as error:
        assert is_one_line(error), repr(str(error))
        return None


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
@tried(60, 2500)
def test_a_changed_recipe(tree: dict[str, Any]) -> None:
    same_again(read_or_refused(lambda: decode_run(tree, "mine.yaml")))


@given(st.dictionaries(st.one_of(KEYS, st.sampled_from(sorted(RECIPES[0]))), VALUES, max_size=6))
@tried(30, 500)
def test_any_tree_as_a_recipe(tree: dict[str, Any]) -> None:
    same_again(read_or_refused(lambda: decode_run(tree, "mine.yaml")))


PATHS = st.sampled_from(sorted({".".join(map(str, path)) for tree in RECIPES for path in places(tree)}))


@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.builds("{}={}".format, st.one_of(PATHS, TEXTS), st.one_of(TEXTS, VALUES))),
        max_size=3,
    )
)
@tried(30, 1000)
def test_any_override(overrides: list[str]) -> None:
    run = read_or_refused(lambda: override_run(RECIPES[0], overrides, "mine.yaml"))
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
@tried(60, 2000)
def test_any_text_as_yaml(text: bytes) -> None:
    tree = read_or_refused(lambda: decoding.parse_yaml(text, "mine.yaml"))
    if tree is not None:
        read_or_refused(lambda: decode_run(tree, "mine.yaml"))


SWEEP = {
    "name": "s",
    "base": {"name": "b", "student": {"model": "s"}},
    "seeds": [1, 2],
    "rows": {"a": {"method": "sft"}, "b": {"training.updates": 3}},
}


@given(changed(SWEEP))
@tried(15, 300)
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
        *("\n".join(f"k{n}: 1" for n in range(30_000)), "name: 0x" + "f" * 200_000, "seed: " + "9" * 5000, "a" * 1_000_001),
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
        override_run(RECIPES[0], [override], "mine.yaml")
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
@tried(40, 1000)
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
    st.sampled_from([b"[" * 5000, b"9" * 5000, b"\xef\xbb\xbf", b"[]"]),
)


@given(st.lists(LINES, max_size=5), st.sampled_from([".jsonl", ".json"]))
@tried(20, 700)
def test_any_bytes_as_a_file_of_rows(tmp_path: Path, lines: list[bytes], suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\n".join(lines))
    found = read_or_refused(lambda: read_records(path, max_bad_rows=3))
    assert found is None or len(found[0]) == found[1].num_rows > 0


# --- what redistill itself has written ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a sweep and a checkpoint as they should be."""
    folder = tmp_path_factory.mktemp("written")
    write_run(folder / "run", "mine", updates=2)
    scores = {"toy": {10: [1.0, 2.0, 3.0], 20: [2.0, 3.0, 4.0]}}
    for name in ("a", "b"):
        write_method(folder / "sweep" / name, scores, name)
    runs = [{"label": name, "seed": 10, "folder": name} for name in ("a", "b")]
    files.write_json(
        folder / "sweep" / "sweep.json",
        {"schema": 1, "name": "s", "baseline": "a", "published": [], "groups": {}, "runs": runs},
    )
    return folder


def read_with(path: Path, tree: Any, *reads: Callable[[], Any]) -> None:
    """Every reader has its way with the file as `tree`, which then is again what it was."""
    before = path.read_bytes()
    try:
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8", errors="replace")
        for read in reads:
            read_or_refused(read)
    finally:
        path.write_bytes(before)


@st.composite
def description(draw: st.DrawFn, path: Path) -> Any:
    """A JSON file of redistill's with some of it changed, any value, or what is no JSON."""
    held = json.loads(path.read_text(encoding="utf-8"))
    noise = st.one_of(
        VALUES, st.text(max_size=20), st.sampled_from(["[" * 50_000, "9" * 5000, '{"schema": 1', "", '{"schema": 2}'])
    )
    return draw(st.one_of(changed(held), changed(held), changed(held), noise))


@given(st.data())
@tried(15, 600)
def test_any_description_of_a_run(written: Path, data: st.DataObject) -> None:
    run = written / "run"
    tree = data.draw(description(run / "run.json"))
    recipe = (lambda: load_config(run / "run.json"), lambda: tokens_of(str(run)))
    read_with(run / "run.json", tree, lambda: build_report(run), lambda: summary_table(run), *recipe)


@given(st.data())
@tried(15, 400)
def test_any_description_of_a_run_that_is_compared(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "b" / "run.json"
    outputs = [written / f"c{ending}" for ending in (".html", ".md", ".tex", ".csv")]
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], outputs))


@given(st.data(), st.sampled_from(["run/scores.json", "run/teacher/scores.json", "sweep/b/scores.json"]))
@tried(15, 500)
def test_any_scores(written: Path, data: st.DataObject, name: str) -> None:
    tree, outputs = data.draw(description(written / name)), [written / "c.html", written / "c.csv"]
    read_with(
        written / name, tree, lambda: build_report(written / "run"), lambda: build_comparison([written / "sweep"], outputs)
    )


@given(st.data())
@tried(15, 250)
def test_any_list_of_runs(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "sweep.json"
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], [written / "c.md"]))


@given(st.data())
@tried(15, 250)
def test_any_manifest_even_one_that_is_sealed_anew(tmp_path: Path, data: st.DataObject) -> None:

    folder = checkpoint.save(tmp_path, 3, tensors={"model": {"w": torch.ones(2)}}, state={"a": 1}, keep=1)
    path = folder / data.draw(st.sampled_from([checkpoint.MANIFEST, checkpoint.STATE]))
    tree = data.draw(description(path))
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8", errors="replace")
    if path.name == checkpoint.STATE:
        held = json.loads((folder / checkpoint.MANIFEST).read_text())
        held["files"][path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(held))
    sealed = hashlib.sha256((folder / checkpoint.MANIFEST).read_bytes()).hexdigest()
    (folder / checkpoint.SEAL).write_text(f"{sealed}  {checkpoint.MANIFEST}\n")
    read_or_refused(lambda: checkpoint.load(tmp_path))
