"""The cached toy world belongs to the code that generates it."""

import shutil
from pathlib import Path

import pytest

from redistill.runs import demo
from redistill.toy import world as toy


@pytest.mark.parametrize("name", ["tasks.py", "phrasings.yaml", "words.yaml"])
def test_a_changed_generator_creates_another_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    copy = tmp_path / "toy"
    shutil.copytree(Path(toy.__file__).parent, copy)
    before = demo.world_folder()
    monkeypatch.setattr(toy, "__file__", str(copy / "world.py"))
    assert demo.world_folder() == before
    with (copy / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert demo.world_folder() != before
