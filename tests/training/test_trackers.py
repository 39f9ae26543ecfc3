"""Trackers: they receive the metrics of a run in the main process, without secrets, and a failure does not stop training."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.errors import ConfigError
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training.metrics import MetricsLog
from redistill.training.trackers import PACKAGES, TrackingConfig, check_packages, flat, tracked
from tests.worlds import tiny_run

FAKE_WANDB = """
import json, os, pathlib
def note(*call):
    with pathlib.Path(__file__).with_name("calls.jsonl").open("a") as file:
        file.write(json.dumps([*call, os.environ.get("RANK", "0")], default=str) + "\\n")
    if False:
        raise RuntimeError("no connection to the service\\nAuthorization: hf_abcdefghijklmnopqrst")
class Run:
    def log(self, values, step=None):
        note("log", values, step)
    def finish(self):
        note("finish", None)
class Config:
    def update(self, values, allow_val_change=False):
        note("config", values)
config = Config()
def init(**options):
    note("init", options)
    return Run()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `wandb` that writes its calls to a file; returns the folder with both."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE_WANDB, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield folder
    sys.modules.pop("wandb", None)


def calls(folder: Path) -> list[list[Any]]:
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_nothing_is_sent_unless_the_recipe_lists_a_tracker(tmp_path: Path, fake: Path) -> None:
    train_student(tiny_run(tmp_path, "sft"))
    assert calls(fake) == [] and "wandb" not in sys.modules


def test_a_tracker_receives_the_settings_and_each_number_of_the_log(tmp_path: Path, fake: Path) -> None:
    config = tiny_run(tmp_path, "kd", training={"evaluate_every": 2}, tracking={"to": ["wandb"], "project": "mine"})
    folder = train_student(config).parent
    (_, options, _), (_, settings, _), *sent, last = calls(fake)
    assert (options["project"], options["name"], options["dir"]) == ("mine", "tiny", str(folder))
    assert options["settings"]["console"] == "off" and not options["settings"]["symlink"]
    assert settings["training.updates"] == 4 and settings["student.lora"] == "null"
    assert last[0] == "finish" and {call[0] for call in sent} == {"log"}
    lines = [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] in ("train", "validation")]
    assert [call[2] for call in sent] == [line["step"] for line in lines]
    for (_, values, _, _), line in zip(sent, lines, strict=True):
        expected = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        assert {key: values[f"{line['kind']}/{key}"] for key in expected} == expected
        if "origin" in line:
            assert values["train/origin/dataset"] == line["origin"]["dataset"]


@pytest.mark.parametrize("where", ["init", "config", "log 3", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_does_not_stop_training(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    without = train_student(tiny_run(tmp_path, "sft", out="without"))
    source = (fake / "wandb.py").read_text()
    (fake / "wandb.py").write_text(source.replace("if False", f"if {where_fails(where)}"))
    capsys.readouterr()
    model = train_student(tiny_run(tmp_path, "sft", tracking={"to": ["wandb"]}))
    notes = [line for line in capsys.readouterr().err.splitlines() if "tracking" in line]
    assert notes == [
        "note: tracking: wandb failed and is not used any more: RuntimeError: no connection to the service Authorization: ***"
    ]
    assert len([call for call in calls(fake) if call[0] == where.split()[0] and call[0] != "log"]) <= 1
    assert files.digest(model / "model.safetensors") == files.digest(without / "model.safetensors")


def where_fails(where: str) -> str:
    name, _, step = where.partition(" ")
    return f'call[0] == "{name}"' + (f" and call[-1] == {step}" if step else "")


def test_secrets_of_the_settings_are_masked(tmp_path: Path, fake: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    settings: Mapping[str, Any] = {"teacher": {"model": "https://me:password@host/model"}, "name": "hf_abcdefghijklmnopqrst"}
    with tracked(TrackingConfig(to=("wandb",)), log, name="n", settings=settings, step=0, note=print):
        log.write({"kind": "train", "step": 1, "loss": 1.0})
    written = (fake / "calls.jsonl").read_text()
    assert "password" not in written and "hf_abc" not in written and "train/loss" in written


def test_events_and_lines_after_the_context_are_not_sent(tmp_path: Path, fake: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with tracked(TrackingConfig(to=("wandb",)), log, name="n", settings={}, step=0, note=print):
        log.write({"kind": "event", "step": 1, "event": "collapse", "text": "a text of the model"})
    log.write({"kind": "train", "step": 2, "loss": 1.0})
    assert [call[0] for call in calls(fake)] == ["init", "config", "finish"]
    assert len(files.read_lines(log.path)) == 2


def test_trackers_may_change_when_a_run_is_resumed_or_repeated(tmp_path: Path, fake: Path) -> None:
    train_student(tiny_run(tmp_path, "sft"))
    train_student(tiny_run(tmp_path, "sft", tracking={"to": ["wandb"]}))  # finished
    assert calls(fake) == []
    train_student(tiny_run(tmp_path, "sft", tracking={"to": ["wandb"]}, training={"updates": 6}))
    assert [call[2] for call in calls(fake) if call[0] == "log"] == [5, 6, 6]


def test_a_stage_has_the_trackers_of_its_run(tmp_path: Path, fake: Path) -> None:
    finetuned = {"model": str(tmp_path / "teacher"), "finetune": {"updates": 1, "batch_size": 4}}
    train_student(tiny_run(tmp_path, "kd", teacher=finetuned, tracking={"to": ["wandb"], "name": "shown"}))
    assert [call[1]["name"] for call in calls(fake) if call[0] == "init"] == ["run-teacher", "shown"]


@pytest.mark.parametrize("tracker", PACKAGES)
def test_a_missing_package_is_an_error_of_one_line_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr("redistill.training.trackers.find_spec", lambda name: None)
    config = tiny_run(tmp_path, "sft", tracking={"to": [tracker]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tracker} needs the package {tracker}" in error
    assert not config.folder.exists()
    with pytest.raises(ConfigError):
        check_packages(TrackingConfig(to=(tracker,)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"to": ["comet"]}, "must be 'tensorboard' or 'wandb' or 'mlflow' or 'trackio'"),
        ({"to": ["wandb", "wandb"]}, "lists a tracker twice"),
        ({"to": ["wandb"], "project": ""}, "project: empty"),
        ({"to": ["wandb"], "name": ""}, "name: empty"),
    ],
)
def test_invalid_settings_are_rejected_when_the_recipe_is_read(tmp_path: Path, tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(tmp_path, "sft", tracking=tree)


def test_nested_values_are_flat() -> None:
    assert flat({"a": {"b": {"c": 1.5}}, "d": None, "e": [1, "x"], "f": True}) == {
        "a.b.c": 1.5,
        "d": "null",
        "e": "[1, 'x']",
        "f": True,
    }


def test_tensorboard_has_the_curves_and_a_resumed_run_replaces_later_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for updates in (2, 4):
        folder = train_student(
            tiny_run(tmp_path, "sft", training={"updates": updates}, tracking={"to": ["tensorboard"]})
        ).parent
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    lines = [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    assert [(each.step, each.value) for each in read.Scalars("train/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
