"""A cached teacher that was killed, belongs to something else, or is damaged; and runs that read it at the same time."""

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from redistill.cli.main import main
from redistill.config.run import Run, encode_run, load_config
from redistill.errors import RedistillError
from redistill.runs.cache_teacher import cache_teacher
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.teachers import filling
from tests.faults.counts import trials
from tests.faults.faulty_disk import FaultyDisk, kill, refuse
from tests.faults.instants import spread
from tests.faults.remains import remains
from tests.worlds import LLAMA, rows, tiny_run, write_model, write_rows

KILLED, NO_SPACE, TRY_AGAIN = -9, 28, 75
SHARD_BYTES = 10_000  # a few shards


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def in_a_process(work: Callable[..., None], *args: object) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.llama.modeling_llama"])
    process = context.Process(target=work, args=args)
    process.start()
    process.join()
    return process.exitcode


def fill(recipe: Path, out: Path, chosen: int | None, error: int, count_to: Path | None) -> None:
    """Fill a store in a process of its own; at the chosen call of the disk it is killed, or refused with an error."""
    torch.set_num_threads(1)
    with (
        recipe.with_suffix(".log").open("a") as log,
        redirect_stdout(log),
        redirect_stderr(log),
        pytest.MonkeyPatch.context() as patch,
    ):
        act = refuse(error) if error else kill
        disk = FaultyDisk(chosen, act, lasting=error != 0, removals=error == 0, piece=4096)
        patch.setattr(files, "disk", disk)
        patch.setattr(filling, "SHARD_BYTES", SHARD_BYTES)
        try:
            cache_teacher(load_config(recipe), out)
        except RedistillError as raised:
            print(f"redistill: {raised}")
            sys.exit(raised.exit_code)
        if count_to is not None:
            count_to.write_text(str(len(disk.calls)))


def write_recipe(path: Path, config: Run) -> Path:
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cached")


@pytest.fixture(scope="module")
def untouched(world: Path) -> tuple[Path, dict[str, bytes], int]:
    """A recipe of SeqKD, whose store has answers and states; the store of an uninterrupted call; and its calls of the disk."""
    recipe = write_recipe(world / "seqkd.yaml", tiny_run(world, "seqkd", training={"generation_batch_size": 7}))
    count = world / "count"
    assert in_a_process(fill, recipe, world / "untouched", None, 0, count) == 0, recipe.with_suffix(".log").read_text()
    found = content(world / "untouched")
    assert {"head.safetensors", "texts.jsonl", "manifest.json", "manifest.sha256"} < set(found)
    assert sum(name.startswith("states-") for name in found) > 3
    return recipe, found, int(count.read_text())


def test_a_store_that_was_killed_at_any_call_of_the_disk_is_completed_bitwise_equal(
    world: Path, untouched: tuple[Path, dict[str, bytes], int]
) -> None:
    recipe, expected, total = untouched
    for number in spread(total, trials(5, 20)):
        out = world / f"killed-{number}"
        assert in_a_process(fill, recipe, out, number, 0, None) == KILLED, number
        assert in_a_process(fill, recipe, out, None, 0, None) == 0, (number, recipe.with_suffix(".log").read_text())
        assert content(out) == expected, number


def test_a_full_disk_ends_with_75_and_the_same_call_completes_the_store(
    world: Path, untouched: tuple[Path, dict[str, bytes], int]
) -> None:
    recipe, expected, total = untouched
    for number in spread(total // 2, trials(2, 10)):
        out = world / f"full-{number}"
        assert in_a_process(fill, recipe, out, number, NO_SPACE, None) == TRY_AGAIN, number
        assert "No space left on device" in recipe.with_suffix(".log").read_text().splitlines()[-1]
        assert in_a_process(fill, recipe, out, None, 0, None) == 0, number
        assert content(out) == expected, number


@pytest.fixture(scope="module")
def kd(world: Path) -> tuple[Path, Path]:
    """A recipe of KD and its complete store."""
    recipe = write_recipe(world / "kd.yaml", tiny_run(world, "kd", data={"tests": {}}))
    assert main(["cache-teacher", str(recipe), "--out", str(world / "store")]) == 0
    return recipe, world / "store"


def test_too_little_space_is_reported_with_both_numbers_before_the_states_are_computed(
    world: Path, kd: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files.Disk, "free_bytes", lambda self, folder: 1000)
    assert main(["cache-teacher", str(kd[0]), "--out", str(world / "small")]) == TRY_AGAIN
    last = capsys.readouterr().err.splitlines()[-1]
    assert "0.0 MB are free and 0.1 MB are needed for the cached teacher" in last


def other_world(folder: Path, name: str) -> list[str]:
    """The override that makes a recipe need another store, by the name of what differs."""
    if name == "training data":
        return [f"data.train=[{write_rows(folder / 'other.jsonl', rows(24, 1))}]"]
    if name == "validation data":
        return [f"data.validation={write_rows(folder / 'other-validation.jsonl', rows(4, 25))}"]
    if name == "teacher weights":
        return [f"teacher.model={write_model(folder / 'other-teacher', LLAMA, 5)}"]
    if name == "teacher config":
        return [f"teacher.model={write_model(folder / 'other-config', LLAMA, 1, rope_theta=1000.0)}"]
    if name == "tokenizer":
        for role in ("teacher", "student"):
            path = folder / f"renamed-{role}"
            write_model(path, LLAMA, 1)
            saved = path / "tokenizer.json"
            tree = files.read_json(saved)
            vocabulary = tree["model"]["vocab"]
            first, second = [token for token in vocabulary if token in ("!", '"')]
            vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
            files.write_json(saved, tree)
        return [f"teacher.model={folder / 'renamed-teacher'}", f"student.model={folder / 'renamed-student'}"]
    return {
        "template": ["data.tokens.template=chat"],
        "teacher revision": ["teacher.revision=v2"],
        "teacher dtype": ["teacher.dtype=bfloat16"],
        "cache_dtype": ["teacher.cache_dtype=bfloat16"],
    }[name]


NAMES = (
    "teacher weights",
    "teacher config",
    "teacher revision",
    "teacher dtype",
    "cache_dtype",
    "tokenizer",
    "training data",
    "validation data",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["cache-teacher", "train"])
def test_a_store_of_something_else_is_rejected_by_name(
    world: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    recipe, store = kd
    before, overrides = content(store), other_world(world, name)
    if command == "train":
        overrides, out = [*overrides, f"teacher.cache={store}"], world / f"run-{name.replace(' ', '-')}"
    else:
        out = store
    capsys.readouterr()
    assert main([command, str(recipe), *overrides, "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{store}: the cached teacher was made with another" in last and f"another {name}" in last, last
    assert content(store) == before


def test_another_template_is_rejected_by_name(world: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    for role, seed in (("teacher", 1), ("student", 2)):
        write_model(world / f"chat-{role}", LLAMA, seed)
        (world / f"chat-{role}" / "chat_template.jinja").write_text(template, encoding="utf-8")
    overrides = [f"student.model={world / 'chat-student'}", "data.tokens.template=chat"]
    teacher = f"teacher={{kind: cached, path: {kd[1]}}}"
    assert main(["train", str(kd[0]), *overrides, teacher, "--out", str(world / "run-chat")]) == 2
    assert "another template" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["training data", "validation data", "tokenizer"])
def test_a_recipe_that_names_only_the_store_is_checked_by_what_it_has(
    world: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    overrides = [each for each in other_world(world, name) if not each.startswith("teacher.")]
    teacher = f"teacher={{kind: cached, path: {kd[1]}}}"
    assert main(["train", str(kd[0]), teacher, *overrides, "--out", str(world / f"path-{name.replace(' ', '-')}")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"another {name}" in last, last


def test_an_incomplete_or_missing_store_is_rejected_with_the_command_that_makes_it(
    world: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "incomplete").mkdir()
    files.append_line(world / "incomplete" / "filling.jsonl", {})
    for folder, fault in (("incomplete", "contains an incomplete cached teacher"), ("absent", "contains no cached teacher")):
        teacher = f"teacher={{kind: cached, path: {world / folder}}}"
        assert main(["train", str(kd[0]), teacher, "--out", str(world / f"run-{folder}")]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert fault in last and "run `redistill cache-teacher RECIPE --out" in last


def test_one_flipped_bit_or_a_cut_of_any_file_is_rejected_by_the_name_of_the_file(
    tmp_path: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, store = kd
    random, intact = np.random.default_rng(1), content(store)
    folder = tmp_path / "damaged"
    folder.mkdir()
    teacher = f"teacher={{kind: cached, path: {folder}}}"
    for name, data in intact.items():
        for trial in range(trials(2, 40)):
            damaged = bytearray(data)
            if trial % 4 == 0:
                damaged = damaged[: int(random.integers(0, len(data)))]
            else:
                damaged[int(random.integers(0, len(data)))] ^= 1 << int(random.integers(0, 8))
            for other, whole in intact.items():
                (folder / other).write_bytes(whole)
            (folder / name).write_bytes(bytes(damaged))
            capsys.readouterr()
            assert main(["train", str(recipe), teacher, "--out", str(tmp_path / "run")]) == 2, (name, trial)
            shown = "manifest.json" if name == "manifest.sha256" else name
            assert shown in capsys.readouterr().err.splitlines()[-1], (name, trial)


def test_a_missing_shard_is_rejected_by_name(tmp_path: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in content(kd[1]).items():
        if not name.startswith("states-"):
            (tmp_path / name).write_bytes(data)
    teacher = f"teacher={{kind: cached, path: {tmp_path}}}"
    assert main(["train", str(kd[0]), teacher, "--out", str(tmp_path / "run")]) == 2
    assert "states-00000.safetensors cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_with_other_files_is_not_written_to(
    tmp_path: Path, kd: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["cache-teacher", str(kd[0]), "--out", str(tmp_path)]) == 2
    assert "contains notes.txt and no cached teacher" in capsys.readouterr().err.splitlines()[-1]
    assert content(tmp_path) == {"notes.txt": b"mine"}


def train(config: Run) -> None:
    torch.set_num_threads(1)
    train_student(config)


def cached(config: Run, store: Path, **changes: Any) -> Run:
    """The run with the store as its teacher."""
    tree = encode_run(config) | {"teacher": {"kind": "cached", "path": str(store)}}
    recipe = Path(changes.pop("recipe"))
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return replace(load_config(recipe), **changes)


def test_two_processes_read_one_store_and_a_resumed_run_is_bitwise_equal(tmp_path: Path, kd: tuple[Path, Path]) -> None:
    recipe, store = kd
    run = cached(load_config(recipe), store, recipe=tmp_path / "cached.yaml", out=str(tmp_path / "whole"))
    run = replace(run, training=replace(run.training, save_every=1))
    context = multiprocessing.get_context("forkserver")
    runs = [run, replace(run, out=str(tmp_path / "second"))]
    processes = [context.Process(target=train, args=(each,)) for each in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected = remains(tmp_path / "whole")
    assert remains(tmp_path / "second") == expected
    resumed = replace(run, out=str(tmp_path / "resumed"))
    assert in_a_process(train_until_killed, resumed) == KILLED
    assert (tmp_path / "resumed" / "checkpoints" / "step-2").is_dir()
    train_student(resumed)
    assert remains(tmp_path / "resumed") == expected


def train_until_killed(config: Run) -> None:
    """Kill this process when the third checkpoint is about to be written."""
    from redistill.training import loop

    torch.set_num_threads(1)
    save, number = loop.save_checkpoint, 0

    def save_or_die(*arguments: Any) -> None:
        nonlocal number
        number += 1
        if number == 3:
            kill()
        save(*arguments)

    loop.save_checkpoint = save_or_die
    train_student(config)
