"""The documentation matches the code: snippets run, and every field, file and link exists.

`test_shown_commands` parses the commands.
"""

import ast
import contextlib
import dataclasses
import io
import json
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import redistill
from redistill.cli.main import main
from redistill.cli.parsers import build_parser
from redistill.config.decode import kind_of
from redistill.config.methods import METHODS
from redistill.config.recipes import packaged_recipes
from redistill.config.run import decode_run
from redistill.contracts import Sampling, TokenSequence
from redistill.data.forms import parse_row
from redistill.data.sample import copy_sample
from redistill.doctor.checks import CHECKS
from redistill.errors import RedistillError
from redistill.records import RawPrompt, Record
from redistill.runs.sweep_recipe import read_sweep
from redistill.storage import files
from redistill.testing import check_divergence
from tests import configuration_page, options_page
from tests.config.test_json_schema import faults
from tests.configuration_page import sections
from tests.first_hour import SHORT, write_own_data
from tests.tokenizers import CHATML
from tests.worlds import LLAMA, rows, write_model, write_rows

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
ADDING = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/adding").glob("*.md")))
RECIPES = packaged_recipes()

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, also those of list items, which are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every shell command in a page."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


# --- the README's commands and Python -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The README's example with a model of 30 layers and width 16, for 2 updates instead of 60."""
    (code,) = blocks(README, "python")
    assert '"training.updates=60"' in code
    folder = a_new_users_folder(tmp_path_factory.mktemp("readme"))
    copy_sample(folder / "sample")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code.replace('"training.updates=60"', ", ".join(map(repr, SHORT))), {})  # noqa: S102 - our own README
    return SimpleNamespace(folder=folder, printed=printed.getvalue())


def a_new_users_folder(folder: Path) -> Path:
    """Make a folder with a small model in place of SmolLM2, and with data of a user; return it."""
    (folder / "models").mkdir()
    write_model(folder / "models/smollm2", LLAMA, 1, num_hidden_layers=30, hidden_size=16, intermediate_size=16)
    files.write_text(folder / "models/smollm2/chat_template.jinja", CHATML)
    write_own_data(folder)
    return folder


# Settings that replace what a command of the README needs from the hub.
HUB = {
    "smollm2-dolly": ["teacher.model=models/smollm2", "data.train=mine.jsonl", "data.tests={mine: mine-test.jsonl}"],
}


def test_every_command_of_the_readme_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(a_new_users_folder(tmp_path))
    done = []
    for words in commands(README):
        if words[0] != "redistill":
            assert words[0] in {"python3", "pip", "make", "ollama"}, words
            continue
        changes = [*HUB.get(words[2], []), *SHORT] if words[1] == "run" else []
        assert main([*words[1:], *changes]) == 0, (words, capsys.readouterr().err)
        done.append(words[1])
    assert {"models", "data", "run", "report", "export"} <= set(done)
    assert "difference to sft" in (tmp_path / "runs/smollm2-sample/report.html").read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_picture_is_a_png():
    assert len(README.splitlines()) <= 150
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 300_000


def test_the_page_of_the_package_index_has_no_link_into_the_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    page = README
    for each in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(each["pattern"], each["replacement"], page)
    assert [target for target in re.findall(r"\]\(([^)]+)\)", page) if not target.startswith("https://")] == []
    assert "docs/data.md" in page and ".png" not in page and "|---|" in page


def test_the_example_prints_scores_and_paths(example):
    assert "'rouge_l'" in example.printed and example.printed.endswith("} runs/first/model runs/first/report.html\n")


def test_every_file_of_the_example_is_in_the_tree_of_the_page(example):
    (tree,) = (block for block in blocks(COMMANDS, "text") if block.startswith("runs/first/"))
    shown = {name.strip("/,") for line in tree.splitlines()[1:] for name in re.split(r"\s{2,}", line.strip())[0].split()}
    found = {path.name for path in (example.folder / "runs/first").iterdir()}
    assert {name.split("/")[0] for name in shown} - {"rejected.jsonl"} == found


def test_the_page_of_the_run_folder_names_every_field(example):
    text = (ROOT / "docs/run-folder.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+)`", text))
    run = example.folder / "runs/first"
    logs = ("metrics", "revisions", "revision-positions", "positions", "windows")
    lines = [line for name in logs for line in files.read_lines(run / f"{name}.jsonl")]
    lines += [line[name] for line in lines for name in ("before", "after") if name in line]
    lines += [each for line in lines for each in line.get("classes", ())]
    lines += files.read_lines(run / "responses/sample-seed10.jsonl")
    lines += [files.read_json(run / "run.json"), files.read_json(run / "scores.json")]
    fields = {name for line in lines for name in line} - {"kind"}
    fields |= {path.name for path in (run / "checkpoints").glob("step-*/*")}
    assert fields - named == set()


# --- commands, recipes, rows --------------------------------------------------------------------------------------------


def test_the_table_of_commands_has_every_command():
    (choices,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, Mapping))
    assert set(re.findall(r"^\| `redistill ([\w-]+)", COMMANDS, re.MULTILINE)) == set(choices)


def test_the_page_of_methods_has_every_method():
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[`([\w-]+)`\]", page, re.MULTILINE) == list(METHODS)
    assert f"{('fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen')[len(METHODS) - 14]} methods" in README


@every_page
def test_every_yaml_block_is_part_of_a_recipe(path, tmp_path, monkeypatch):
    """The modules that the page shows may be named."""
    text = path.read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = page_modules(text)
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    whole = {"name": "page", "teacher": {"model": "teacher"}, "student": {"model": "student"}}
    whole |= {"method": "gkd"} if modules else {}
    for tree in map(yaml.safe_load, blocks(text, "yaml")):
        if "resources" in tree:  # a part of a sweep
            sweep = tmp_path / "sweep.yaml"
            sweep.write_text(yaml.safe_dump({"name": "page", "base": whole, "rows": {"a": {}}, **tree}), encoding="utf-8")
            read_sweep(sweep)
            assert faults(yaml.safe_load(sweep.read_text(encoding="utf-8")), "sweep") == []
        else:
            decode_run(whole | tree, path.name, modules)
            assert faults(whole | tree) == []
    for name in modules:
        sys.modules.pop(name, None)


def page_modules(text: str) -> dict[str, str]:
    """The Python files that a page shows, by module name."""
    return dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", text, re.DOTALL))


def test_every_row_of_the_readme_and_the_page_of_data_is_read():
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    lines = "".join([*blocks(README, "json"), *blocks(page, "json")]).splitlines()
    forms = [parse_row(json.loads(line)).form for line in lines]
    assert forms[0] == "messages"
    assert set(forms) == {"instruction/input/output", "prompt/completion", "messages", "conversations"}


# --- names, fields, links -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [configuration_page, options_page], ids=lambda module: module.__name__)
def test_generated_pages_are_up_to_date(generator, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = generator.pages()
    assert {path for path in found if path.parent == generator.FOLDER} == set(generator.FOLDER.glob("*.md"))
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, f"run `python -m {generator.__name__}`"


def test_the_page_of_recipes_has_every_recipe():
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)`", page, re.MULTILINE) == sorted(RECIPES, key=lambda name: (RECIPES[name].kind, name))


def known_fields() -> set[str]:
    """Every path of the config, with one more `source` where a policy may have one."""
    fields = {f"{section.path}.{f.name}".strip(".") for section in sections() for f in dataclasses.fields(section.node)}
    for depth in ("policy.source", "policy.source.source"):
        fields |= {field.replace("policy", depth, 1) for field in fields if field.startswith("policy.")}
    return fields | {"objective.divergence.kind", "policy.kind", "policy.source.kind"}


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_field_that_is_named_exists(path):
    text = path.read_text(encoding="utf-8")
    tops = "|".join(section.path for section in sections() if section.path and "." not in section.path)
    named = set(re.findall(rf"`((?:{tops})\.[a-z_.]+[a-z])[`=:]", text))
    modules = {m for m in named if (ROOT / "src/redistill" / m.replace(".", "/")).with_suffix(".py").is_file()}
    assert named - modules - known_fields() == set()


@every_page
def test_every_link_has_a_target(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page_path = path.parent / name if name else path
        assert page_path.exists(), f"{path.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", page_path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}, target


@every_page
def test_every_source_file_that_is_named_exists(path):
    for name in re.findall(r"`((?:src|tests|recipes|docs)/[\w./-]+)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_the_layers_are_those_of_the_import_contract():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (block,) = (block for block in blocks(text, "text") if block.startswith("__main__"))
    shown = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert shown == [layer.replace("redistill.", "") for layer in layers]
    assert len(shown) == 14


def test_the_tree_of_the_architecture_page_has_every_package_and_module():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (block,) = (block for block in blocks(text, "text") if block.startswith("src/redistill/"))
    shown = {line.split()[0].rstrip("/") for line in block.splitlines()[1:]}
    package = ROOT / "src/redistill"
    found = {path.parent.name for path in package.glob("*/__init__.py")} | {path.name for path in package.glob("*.py")}
    assert found <= shown


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == redistill.__version__
    assert citation["license"] == "Apache-2.0"
    assert f"## {redistill.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_public_name_exists():
    for name in redistill.__all__:
        assert getattr(redistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = redistill.distil


# --- docs/adding/ -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def added() -> dict[str, Any]:
    """The names that the files of docs/adding/ define."""
    names: dict[str, Any] = {"__name__": "added"}
    for code in page_modules(ADDING).values():
        exec(code, names)  # noqa: S102 - our own page
    return names


def test_the_divergence_that_is_added_obeys_the_laws(added):
    for divergence in added["Hellinger"].examples():
        check_divergence(divergence)
    logp_NV, logq_NV = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]).log()
    torch.testing.assert_close(added["Hellinger"]()(logq_NV, logp_NV), torch.tensor([0.0, 1.0]))
    assert kind_of(added["Hellinger"]) == "hellinger"


def test_the_metric_that_is_added_scores_an_answer():
    names: dict[str, Any] = {}
    exec(page_modules(ADDING)["my_metric"], names)  # noqa: S102 - our own page
    metric, record = names["METRIC"], Record(record_id="r", prompt=RawPrompt("Say it."), references=("good morning all",))
    assert metric.scored("Good evening", record) == pytest.approx(1 / 3)
    assert metric.scored("all good", record) == pytest.approx(2 / 3) and metric.aggregated([0.0, 1.0]) == 0.5


def test_the_policy_that_is_added_changes_its_source_at_its_update(added):
    gold, own = (
        TokenSequence(sample=0, token_ids=(1, 2), supervised=(False, True), origin=origin) for origin in ("dataset", "student")
    )
    inner = SimpleNamespace(sequences=lambda step, items: [own])
    source = added["WarmUpSource"](inner, 2)
    items = [SimpleNamespace(sequence=gold)]
    assert [source.sequences(step, items)[0].origin for step in range(4)] == ["dataset", "dataset", "student", "student"]
    assert added["WarmUp"]().sampling == Sampling()
    assert kind_of(added["WarmUp"]) == "warm_up"


def test_the_task_that_is_added_loads_its_file(added, tmp_path):
    assert added["TASK"].load(write_rows(tmp_path / "trivia.jsonl", rows(2)))[0][0].record_id == "trivia:1"
    with pytest.raises(RedistillError):
        added["TASK"].load(tmp_path / "absent.jsonl")


# --- docs/faq.md, Python blocks -----------------------------------------------------------------------------------------


def test_every_line_of_the_doctor_in_the_faq_has_words_of_its_check():
    """Each line contains two texts of the module of its check, of at least 12 characters."""
    modules = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "src/redistill/doctor").glob("*.py")}
    words = {
        name: [
            node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for name, text in modules.items()
    }
    lines = "".join(blocks((ROOT / "docs/faq.md").read_text(encoding="utf-8"), "text")).splitlines()
    assert len(lines) > 12
    for line in lines:
        number, kind = re.match(r"(\d+) (found|note): ", line).groups()
        (check,) = (check for check in CHECKS if check.number == int(number))
        found = [text for text in words[check.find.__module__.rpartition(".")[2]] if len(text) >= 12 and text.strip() in line]
        assert len(found) >= 2, (line, found)
        assert kind in ("found", "note")


def test_every_page_with_python_is_executed_by_a_test():
    pages = {path.relative_to(ROOT).as_posix() for path in PAGES if blocks(path.read_text(encoding="utf-8"), "python")}
    adding = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/adding").glob("*.md")}
    assert pages - adding == {"README.md", "docs/walkthrough.md"}
