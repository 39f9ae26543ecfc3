"""The identity of a run, and the comparison of all ranks."""

from pathlib import Path
from typing import Any

import pytest

from redistill.processes.watch import RanksDifferError
from redistill.records import Instruction, Record
from redistill.runs.identity import _records_hash, check_ranks, checked_identity
from redistill.runs.opened import open_run
from redistill.runs.run import train_student
from redistill.storage import files
from tests.worlds import rows, tiny_run, write_rows

INPUTS, PACKAGES = {"config": "a", "teacher weights": "b", "training data": "c"}, {"redistill": "1", "torch": "2"}
REMEDY = "start all ranks with the same recipe, files and packages"


def identity(folder: Path, method: str = "kd", **sections: Any) -> dict[str, str]:
    with open_run(tiny_run(folder, method, **sections)) as run:
        return checked_identity(run)


def test_the_identity_does_not_depend_on_the_output_folder(tmp_path: Path) -> None:
    assert identity(tmp_path, out="one") == identity(tmp_path, out="two")


def test_settings_and_data_change_their_own_hashes_alone(tmp_path: Path) -> None:
    before = identity(tmp_path)
    other_seed = identity(tmp_path, seed=4)
    assert {name for name in before if before[name] != other_seed[name]} == {"settings"}
    write_rows(tmp_path / "other.jsonl", rows(4, 40))
    other_data = identity(tmp_path, data={"validation": str(tmp_path / "other.jsonl")})
    assert {name for name in before if before[name] != other_data[name]} == {"settings", "validation data"}


def test_a_student_of_teacher_layers_has_no_files_of_its_own(tmp_path: Path) -> None:
    found = identity(tmp_path, student={"model": "teacher", "initialise": {"layers": [0, 2]}})
    assert "teacher weights" in found and "student weights" not in found


def test_a_run_without_a_teacher_has_hashes_of_its_student_alone(tmp_path: Path) -> None:
    found = identity(tmp_path, "sft", teacher=None)
    assert "student weights" in found and not any(name.startswith("teacher") for name in found)


def test_models_come_before_the_data_that_depend_on_them(tmp_path: Path) -> None:
    names = list(identity(tmp_path))
    assert names[-3:] == ["training data", "validation data", "pre-training data"]


def test_equal_ranks_are_accepted() -> None:
    check_ranks([(INPUTS, PACKAGES)])
    check_ranks([(INPUTS, PACKAGES)] * 3)


@pytest.mark.parametrize(
    ("changes", "packages", "what"),
    [
        ({"training data": "d"}, {}, "training data"),
        ({"teacher weights": "d", "config": "d"}, {}, "config, teacher weights"),
        ({"start weights": "d"}, {}, "start weights"),
        ({}, {"torch": "3"}, "package versions (torch 3 and 2)"),
        ({}, {"peft": "1"}, "package versions (peft 1 and none)"),
        ({"training data": "d"}, {"redistill": "0"}, "training data, package versions (redistill 0 and 1)"),
    ],
)
def test_the_first_rank_that_differs_is_named_with_all_differences(
    changes: dict[str, str], packages: dict[str, str], what: str
) -> None:
    other = ({**INPUTS, **changes}, {**PACKAGES, **packages})
    with pytest.raises(RanksDifferError) as caught:
        check_ranks([(INPUTS, PACKAGES), (INPUTS, PACKAGES), other, other])
    assert str(caught.value) == f"rank 2 has different {what} than rank 0; {REMEDY}"
    assert caught.value.exit_code == 2


def test_a_rank_that_lacks_an_input_differs() -> None:
    less = {name: value for name, value in INPUTS.items() if name != "teacher weights"}
    with pytest.raises(RanksDifferError, match="rank 1 has different teacher weights than rank 0"):
        check_ranks([(INPUTS, PACKAGES), (less, PACKAGES)])


def test_test_sets_are_compared_by_name_order_and_content() -> None:
    one, two = (Record(record_id=f"toy:{i}", prompt=Instruction(f"Question {i}"), references=("\ud800",)) for i in (1, 2))
    sets = [{"toy": [one, two]}, {"toy": [two, one]}, {"toy": [one]}, {"other": [one, two]}, {}]
    assert len({_records_hash(tests) for tests in sets}) == len(sets)


def test_run_json_has_the_identity(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "kd", training={"updates": 1})
    train_student(config)
    held = files.read_json(config.folder / "run.json")["identity"]
    assert held == files.read_json(config.folder / "checkpoints" / "identity.json")["run"]
    with open_run(config) as run:
        assert held == checked_identity(run)
