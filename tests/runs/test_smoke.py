"""The smoke test of a recipe: what it does, what it leaves, and how it fails."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.errors import ConfigError
from redistill.runs.smoke import one_update, smoke_test
from redistill.storage import files
from tests.worlds import LLAMA, tiny_run

SMALL = LLAMA | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    tiny_run(folder, config=SMALL)
    return folder


def test_it_executes_one_update_and_leaves_no_file(world):
    run = tiny_run(world, "kd", out="runs/never/made", tracking={"to": []})
    before = sorted(world.rglob("*"))
    lines: list[str] = []
    found = smoke_test(run, lines.append)
    assert sorted(world.rglob("*")) == before
    assert found.sequences == 4 and found.prompts == 2 and found.loss > 0
    assert found.parameters > 5_000 and found.saved_bytes > 4 * found.parameters
    assert set(found.seconds) == {"open", "update", "validate", "save", "load"} and min(found.seconds.values()) >= 0
    assert len(found.lines()) >= 5 and "one update with 4 sequences" in "\n".join(found.lines())


def test_the_update_has_the_batch_and_the_lengths_of_the_recipe(world):
    run = tiny_run(world, "mgsr", training={"updates": 50, "batch_size": 6, "compile": "rows"})
    run = dataclasses.replace(run, teacher=dataclasses.replace(run.teacher, cache=str(world / "cache"), cache_new_text=True))
    short, notes = one_update(run, world / "x")
    assert short.training.updates == 1 and short.training.batch_size == 6 and short.data.tokens == run.data.tokens
    assert short.resolved_method.objective == run.resolved_method.objective
    assert short.teacher.cache is None and short.data.max_train_rows == 256 and short.folder == world / "x"
    assert [note.split(";")[0].split(" (")[0] for note in notes] == ["the teacher is loaded", "nothing is compiled"]


def test_an_unfinished_fine_tuning_is_left_out_and_a_finished_one_is_used(world):
    run = tiny_run(world, "kd", student={"finetune": {"updates": 1}, "start": "finetuned"}, out="tuned")
    short, notes = one_update(run, world / "x")
    assert short.student.model == run.student.model and not short.starts_finetuned
    assert notes == ["stage start: is not trained yet; the model is used without this fine-tuning"]
    files.make_folder(world / "tuned-start" / "model")
    (world / "tuned-start" / "model" / "config.json").write_text("{}")
    short, notes = one_update(run, world / "x")
    assert short.student.model == str(world / "tuned-start" / "model") and notes == []


def test_a_recipe_that_cannot_run_has_the_exit_code_of_a_run(world, capsys):
    tree = encode_run(tiny_run(world, "kd", data={"tokens": {"prompt_tokens": 1, "response_tokens": 16}}))
    (world / "faulty.yaml").write_text(yaml.safe_dump(tree))
    codes = [main(["run", str(world / "faulty.yaml"), *flags]) for flags in (["--smoke"], [])]
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("redistill: "))
    assert codes == [2, 2] and first == second
    assert not (world / "run").exists()


def test_several_processes_are_rejected(world, monkeypatch):
    monkeypatch.setattr("redistill.runs.smoke.make_accelerator", lambda precision: type("Two", (), {"num_processes": 2}))
    with pytest.raises(ConfigError, match="run --smoke: 2 processes: must be 1; start it without a launcher"):
        smoke_test(tiny_run(world, "kd"))
