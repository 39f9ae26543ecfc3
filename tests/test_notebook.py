"""examples/quickstart.ipynb runs from its first cell to its last, and has the outputs of such a run."""

import ast
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from redistill.config.run import load_config
from tests.test_docs import a_new_users_folder

PATH = Path(__file__).parents[1] / "examples/quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))["cells"]


def code() -> list[dict[str, Any]]:
    return [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_has_text_before_each_cell_and_the_outputs_of_one_run() -> None:
    kinds = [cell["cell_type"] for cell in CELLS]
    assert kinds[0] == kinds[-1] == "markdown"
    assert all(before == "markdown" for before, kind in itertools.pairwise(kinds) if kind == "code")
    assert [cell["execution_count"] for cell in code()] == list(range(1, len(code()) + 1))
    assert all(cell["outputs"] for cell in code())
    assert not any(output["output_type"] == "error" for cell in code() for output in cell["outputs"])


def test_every_link_of_the_notebook_has_a_target() -> None:
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\((?!https)([^)#]+)", text)
    assert len(targets) > 3
    for target in targets:
        assert (PATH.parent / target).is_file(), target


def test_the_change_that_the_text_names_gives_the_whole_recipe_in_another_folder() -> None:
    (change,) = re.findall(r"`SHORT = (\[.+?\])` in the second code cell", "".join(CELLS[0]["source"]))
    assert "".join(code()[1]["source"]).startswith("SHORT = [")
    short, whole = (load_config(Path("smollm2-sample"), list(changes)) for changes in ((), ast.literal_eval(change)))
    assert dataclasses.replace(whole, out=short.out) == short and whole.folder != short.folder


@pytest.mark.notebook
def test_the_notebook_runs_with_a_small_model_in_place_of_smollm2(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    a_new_users_folder(tmp_path)
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("student" in output.get("text", "") for output in printed)
    assert list(tmp_path.glob("runs/smollm2-sample/report.html"))
