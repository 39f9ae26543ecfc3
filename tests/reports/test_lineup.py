"""Selection and labels of the runs of a comparison."""

import json
from pathlib import Path

import pytest

from redistill.errors import CheckpointError, ConfigError
from redistill.reports.lineup import read_lineup
from tests.reports.fabricated import write_json, write_method, write_sweep

SCORES = {"dolly": {10: [20.0, 30.0], 20: [25.0, 35.0]}}


def write(folder: Path, method: str, seed: int = 10, **changes) -> Path:
    return write_method(
        folder, SCORES, method, seed, change={name.replace("__", "."): value for name, value in changes.items()}
    )


def labels_and_seeds(lineup) -> list[tuple[str, int]]:
    return [(entry.label, entry.seed) for entry in lineup.entries]


def test_runs_without_a_sweep_are_labelled_by_method_with_seeds_in_one_row(tmp_path):
    folders = [write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr", 10), write(tmp_path / "c", "mgsr", 20)]
    lineup = read_lineup(folders)
    assert labels_and_seeds(lineup) == [("sft", 10), ("mgsr", 10), ("mgsr", 20)] and lineup.labels == ["sft", "mgsr"]
    assert lineup.baseline == "sft"


def test_runs_of_one_method_with_different_settings_are_labelled_by_their_common_prefix(tmp_path):
    folders = [
        write(tmp_path / "a", "mgsr", 10),
        write(tmp_path / "b", "mgsr", 10, name="long-10", config__training__updates=300),
        write(tmp_path / "c", "mgsr", 20, name="long-20", config__training__updates=300),
    ]
    assert labels_and_seeds(read_lineup(folders)) == [("mgsr-10", 10), ("long", 10), ("long", 20)]


@pytest.mark.parametrize("seeds", [(10, 11), (10, 20)])
def test_a_suffix_with_the_seed_of_the_run_is_not_part_of_its_label(tmp_path, seeds):
    folders = [
        write(tmp_path / f"{kind}-{seed}", "mgsr", seed, name=f"{kind}-seed{seed}", config__training__updates=updates)
        for kind, updates in (("none", 100), ("long_robust", 300))
        for seed in seeds
    ]
    assert read_lineup(folders).labels == ["none", "long_robust"]
    assert read_lineup([folders[0], *folders[2:]]).labels == ["none", "long_robust"]
    other = write(tmp_path / "other", "mgsr", 12, name=f"none-seed{seeds[0]}", config__training__updates=7)
    assert read_lineup([*folders, other]).labels == ["none", "long_robust", f"none-seed{seeds[0]}"]  # another seed's suffix


def test_runs_with_equal_names_are_labelled_by_method_or_folder(tmp_path):
    first, second = (write(tmp_path / name, "mgsr", name="mine") for name in ("a", "b"))
    longer = write(tmp_path / "long-10", "mgsr", name="mine", config__training__updates=300)
    other = write(tmp_path / "c", "kd", name="mine")
    assert labels_and_seeds(read_lineup([first, other])) == [("mgsr", 10), ("kd", 10)]
    assert labels_and_seeds(read_lineup([first, longer, other])) == [("a", 10), ("long-10", 10), ("kd", 10)]
    nested = write(tmp_path / "x" / "a", "mgsr", name="mine", config__training__updates=9)
    assert labels_and_seeds(read_lineup([first, nested])) == [(str(first), 10), (str(nested), 10)]
    with pytest.raises(CheckpointError, match="has the same label 'mgsr' and training seed 10 as"):
        read_lineup([first, second])  # the same recipe and seed: the rows would not differ


def test_a_sweep_determines_labels_seeds_and_baseline_and_lists_unfinished_runs(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"kd": 1.0, "sft": 0.0}, seeds=(10, 20), prompts=4)
    held = json.loads((sweep / "sweep.json").read_text())
    held["baseline"] = "sft"
    held["runs"].append({"label": "mgsr", "seed": 10, "folder": "mgsr-seed10"})
    write_json(sweep / "sweep.json", held)
    described = json.loads((sweep / "kd-seed20" / "run.json").read_text())
    write_json(sweep / "kd-seed20" / "run.json", described | {"status": "trained"})
    lineup = read_lineup([sweep])
    assert labels_and_seeds(lineup) == [("kd", 10), ("sft", 10), ("sft", 20)]
    assert lineup.baseline == "sft" and lineup.name == "toy table"
    assert lineup.left_out == ["kd, seed 20 (kd-seed20)", "mgsr, seed 10 (mgsr-seed10)"]


def test_rows_of_a_sweep_that_share_a_run_are_both_kept(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"sft": 0.0, "kd": 1.0}, seeds=(10,), prompts=4)
    held = json.loads((sweep / "sweep.json").read_text())
    held["runs"].append({"label": "also-kd", "seed": 10, "folder": "kd-seed10"})
    write_json(sweep / "sweep.json", held)
    assert labels_and_seeds(read_lineup([sweep])) == [("sft", 10), ("kd", 10), ("also-kd", 10)]


def test_labels_of_several_sweeps_are_made_unique(tmp_path):
    first = write_sweep(tmp_path / "one", {"sft": 0.0, "kd": 1.0}, seeds=(10,), prompts=4)
    second = write_sweep(tmp_path / "two", {"sft": 0.0, "gkd": 1.0}, seeds=(10,), prompts=4)
    held = json.loads((second / "sweep.json").read_text())
    write_json(second / "sweep.json", held | {"name": "second table"})
    lineup = read_lineup([first, second])
    assert lineup.labels == ["sft (toy table)", "kd", "sft (second table)", "gkd"]


def test_a_run_that_is_given_twice_appears_once(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"sft": 0.0, "kd": 1.0}, seeds=(10,), prompts=4)
    assert labels_and_seeds(read_lineup([sweep, sweep / "kd-seed10"])) == [("sft", 10), ("kd", 10)]
    alone = write(tmp_path / "a", "mgsr")
    assert labels_and_seeds(read_lineup([alone, sweep / ".." / "a"])) == [("mgsr", 10)]


def test_the_baseline_is_a_label_or_a_run_that_is_added_to_the_comparison(tmp_path):
    folders = [write(tmp_path / "a", "sft"), write(tmp_path / "b", "mgsr")]
    added = write(tmp_path / "c", "kd")
    assert read_lineup(folders, "mgsr").baseline == "mgsr"
    assert read_lineup(folders, str(folders[1])).baseline == "mgsr"
    joined = read_lineup(folders, str(added))
    assert joined.baseline == "kd" and joined.labels == ["sft", "mgsr", "kd"]
    with pytest.raises(ConfigError, match="--baseline gkd: must be one of sft, mgsr, or the folder of a finished run"):
        read_lineup(folders, "gkd")


def test_rows_are_selected_and_ordered(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", {"sft": 0.0, "kd": 1.0, "mgsr": 2.0}, seeds=(10,), prompts=4)
    lineup = read_lineup([sweep], labels=["mgsr", "kd"])
    assert lineup.labels == ["mgsr", "kd"] and lineup.baseline == "mgsr"
    with pytest.raises(ConfigError, match="--rows gkd: no finished run has this label; must be one of sft, kd, mgsr"):
        read_lineup([sweep], labels=["gkd"])


def test_invalid_folders_are_rejected_in_one_line(tmp_path):
    run = write(tmp_path / "run", "sft")
    again = write(tmp_path / "again", "sft")
    unfinished = write(tmp_path / "unfinished", "kd")
    (unfinished / "scores.json").unlink()
    outside, odd, empty = tmp_path / "outside", tmp_path / "odd", tmp_path / "empty"
    write_json(outside / "sweep.json", {"schema": 1, "runs": [{"label": "a", "seed": 1, "folder": "../run"}]})
    write_json(odd / "sweep.json", {"schema": 1, "runs": [{"label": "a"}]})
    write_json(empty / "sweep.json", {"schema": 1, "runs": []})
    cases = {
        "has the same label 'sft' and training seed 10 as": [run, again],
        "scores.json is missing": [unfinished],
        "leads out of the folder": [outside],
        "must have label, seed and folder": [odd],
        "no finished run to compare": [empty],
        "no such folder": [tmp_path / "nowhere"],
    }
    for message, folders in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            read_lineup(folders)
        assert "\n" not in str(caught.value)
