"""Sweeps: all runs are checked first, equal runs are shared, finished runs skipped, and failures do not stop others."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.errors import ConfigError, OutputError, RedistillError, TrainingError
from redistill.runs import sweep
from redistill.runs.executors import local
from redistill.runs.sweep import Plan, plan_sweep, run_sweep
from redistill.servers.address import allow_hosts
from redistill.storage import files
from redistill.storage.lock import locked

# Replaces the command: records its call, fails if the recipe's name requests it, else writes the files of a run.
COMMAND = """
import json, os, pathlib, sys, yaml
command, recipe, option, out = sys.argv[1:]
assert command in {"run", "train"} and option == "--out"
config = yaml.safe_load(open(recipe))
folder = pathlib.Path(out)
with open(folder.parent / "calls.txt", "a") as calls:
    calls.write(f"{command} {folder.name}\\n")
print("at work", flush=True)
if (folder / "fail").exists():
    print("redistill: mine.jsonl: no such file", flush=True)
    raise SystemExit(int((folder / "fail").read_text() or 2))
status = "trained" if command == "train" else "finished"
(folder / "run.json").write_text(json.dumps({"schema": 2, "status": status, "config": config}))
scores = {"datasets": {"toy": {"seeds": {"10": {"rouge_l": 40.0}, "20": {"rouge_l": 60.0}}}}}
if command == "run":
    (folder / "scores.json").write_text(json.dumps(scores))
"""

BASE = {
    "teacher": {"model": "big"},
    "student": {"model": "small"},
    "data": {"tests": {"dolly": None}},
    "optimiser": {"learning_rate": 1e-3},
}
ROWS = {"sft": {"method": "sft"}, "kd": {"method": "kd"}, "mgsr": {"method": "mgsr"}}


@pytest.fixture(autouse=True)
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Disables training and comparison; returns the arguments of the comparisons."""
    asked: list[dict[str, Any]] = []

    def compare(folders: Any, outputs: Any, **options: Any) -> None:
        asked.append({"folders": list(folders), "outputs": [path.name for path in outputs], **options})

    script = tmp_path / "command.py"
    script.write_text(COMMAND, encoding="utf-8")
    monkeypatch.setattr(sweep, "python_module", lambda _, *arguments: [sys.executable, str(script), *arguments])
    monkeypatch.setattr(sweep, "build_comparison", compare)
    monkeypatch.setattr(sweep, "print_comparison", lambda comparison: None)
    return asked


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    """Write a sweep recipe and plan it; `only` is a command line option, all other arguments are fields of the recipe."""

    def write(only: tuple[str, ...] = (), **tree: Any) -> Plan:
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({"name": "table", "base": BASE, "rows": ROWS, "seeds": [1], **tree}, sort_keys=False))
        return plan_sweep(path, out=tmp_path / "out", only=only)

    return write


def calls(folder: Path) -> list[str]:
    """The runs of a folder since the last call."""
    path = folder / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def held(plan: Plan) -> dict[str, Any]:
    return files.read_json(plan.folder / "sweep.json")


def test_every_row_and_seed_is_a_separate_run(plan: Callable[..., Plan]) -> None:
    made = plan(seeds=[1, 2])
    assert [(e.label, e.seed, e.run.method, e.run.seed, e.run.folder.name) for e in made.entries] == [
        (label, seed, label, seed, f"{label}-seed{seed}") for label in ROWS for seed in (1, 2)
    ]
    run_sweep(made, jobs=1)
    assert calls(made.folder) == [f"run {label}-seed{seed}" for label in ROWS for seed in (1, 2)]
    assert held(made) == {
        "schema": 1,
        "name": "table",
        "baseline": "sft",
        "published": [],
        "groups": {},
        "runs": [
            {"label": label, "seed": seed, "folder": f"{label}-seed{seed}", "status": "finished"}
            for label in ROWS
            for seed in (1, 2)
        ],
    }


@pytest.mark.parametrize("place", ["kd-seed1", "stages", "mgsr-seed1"])
def test_nothing_is_written_if_a_folder_of_the_sweep_is_a_link(plan: Callable[..., Plan], tmp_path: Path, place: str) -> None:
    base = BASE | {"teacher": {"model": "t", "finetune": {"updates": 1}}}
    made = plan(base=base)
    (tmp_path / "precious").mkdir()
    made.folder.mkdir()
    (made.folder / place).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=f"{place}.* leads out of the folder"):
        run_sweep(made, jobs=1)
    assert list((tmp_path / "precious").iterdir()) == [] and [path.name for path in made.folder.iterdir()] == [place]


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_the_log_of_a_run_is_not_appended_to_another_file(
    plan: Callable[..., Plan], tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    made = plan()
    (tmp_path / "precious").write_text("mine")
    (made.folder / "sft-seed1").mkdir(parents=True)
    make(made.folder / "sft-seed1" / "log.txt", tmp_path / "precious")
    with pytest.raises(OutputError, match=r"log\.txt: could not be written .* remove the link"):
        run_sweep(made, jobs=1)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["recipe.yaml", "../sweep.json", "../compare.csv"])
def test_a_file_of_a_sweep_replaces_a_link_and_not_its_target(plan: Callable[..., Plan], tmp_path: Path, name: str) -> None:
    made = plan()
    (tmp_path / "precious").write_text("mine")
    (made.folder / "sft-seed1").mkdir(parents=True)
    path = made.folder / "sft-seed1" / name
    path.symlink_to(tmp_path / "precious")
    if name.endswith("sweep.json"):
        (tmp_path / "precious").write_text('{"name": "table"}')
    before = (tmp_path / "precious").read_text()
    run_sweep(made, jobs=1)
    assert (tmp_path / "precious").read_text() == before


def test_dotted_keys_change_single_fields_of_the_methods_own_parts(plan: Callable[..., Plan]) -> None:
    rows = {"mgsr": {"method": "mgsr"}, "no-span": {"method": "mgsr", "objective.span_weight": 0, "policy": "mixed"}}
    full, changed = (entry.run for entry in plan(rows=rows).entries)
    assert changed.resolved_method.objective.divergence == full.resolved_method.objective.divergence
    assert (full.resolved_method.objective.span_weight, changed.resolved_method.objective.span_weight) == (1.0, 0.0)
    assert changed.resolved_method.policy != full.resolved_method.policy


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"method": "mgrs"}, "method = 'mgrs': no such method"),
        ({"optimiser": {"learnig_rate": 1}}, "optimiser.learnig_rate: no such field; did you mean 'learning_rate'?"),
        ({"optimiser.learning_rate": "fast"}, "optimiser.learning_rate = 'fast': must be a number"),
        ({"method": "mgsr", "objective.divergence.alfa": 1}, "objective.divergence.alfa: no such field"),
    ],
)
def test_an_invalid_last_row_is_an_error_before_anything_runs(
    plan: Callable[..., Plan], tmp_path: Path, row: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan(rows={**ROWS, "last": row})
    assert f"{tmp_path / 'table.yaml'}: rows.last: {said}" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_command_line_settings_override_rows(tmp_path: Path) -> None:
    rows = {"a": {"method": "sft", "training": {"updates": 5}}, "b": {"method": "sft", "training.updates": 6}}
    files.write_text(tmp_path / "table.yaml", yaml.safe_dump({"name": "table", "base": BASE, "rows": rows, "seeds": [1]}))
    made = plan_sweep(tmp_path / "table.yaml", ["training.updates=7"], out=tmp_path / "out")
    assert [entry.run.training.updates for entry in made.entries] == [7, 7]
    assert len({entry.run.folder for entry in made.entries}) == 1


def test_equal_runs_run_once_and_have_every_label(plan: Callable[..., Plan]) -> None:
    rows = {**ROWS, "dac-kl": {"method": "mgsr"}, "other": {"method": "mgsr", "training.updates": 7}}
    made = plan(rows=rows, seeds=[1, 2])
    run_sweep(made, jobs=1)
    assert calls(made.folder) == [f"run {label}-seed{seed}" for label in (*ROWS, "other") for seed in (1, 2)]
    shared = [entry for entry in held(made)["runs"] if entry["folder"] == "mgsr-seed2"]
    assert [(entry["label"], entry["seed"], entry["status"]) for entry in shared] == [
        ("mgsr", 2, "finished"),
        ("dac-kl", 2, "finished"),
    ]


def test_finished_runs_are_skipped_and_the_others_resume(plan: Callable[..., Plan], tmp_path: Path) -> None:
    run_sweep(plan(only=("kd",)), jobs=1)
    assert calls(tmp_path / "out") == ["run kd-seed1"]
    made = plan()
    assert list(made.statuses().values()) == ["waiting", "finished", "waiting"]
    run_sweep(made, jobs=1)
    assert calls(made.folder) == ["run sft-seed1", "run mgsr-seed1"]
    run_sweep(plan(), jobs=1)
    assert calls(made.folder) == []


def test_a_run_with_another_configuration_is_rejected_and_unchanged(plan: Callable[..., Plan]) -> None:
    made = plan()
    run_sweep(made, jobs=1)
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    changed = plan(base={**BASE, "optimiser": {"learning_rate": 2e-3}})
    with pytest.raises(ConfigError, match=r"contains another run \(optimiser.learning_rate is 0.001 there and 0.002 here\)"):
        run_sweep(changed, jobs=1)
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


def test_the_folder_of_another_sweep_is_rejected(plan: Callable[..., Plan]) -> None:
    run_sweep(plan(only=("sft",)), jobs=1)
    with pytest.raises(ConfigError, match="contains the sweep 'table', not 'other'"):
        run_sweep(plan(name="other"), jobs=1)


def test_a_failure_is_reported_and_the_other_runs_are_compared(
    plan: Callable[..., Plan], compared: list[dict[str, Any]]
) -> None:
    made = plan()
    files.write_text(made.folder / "kd-seed1" / "fail", "")
    with pytest.raises(TrainingError) as error:
        run_sweep(made, jobs=2)
    assert error.value.exit_code == 1
    assert "1 of 3 runs failed: kd-seed1: exit code 2, redistill: mine.jsonl: no such file" in str(error.value)
    assert str(made.folder / "kd-seed1" / "log.txt") in str(error.value)
    assert [entry["status"] for entry in held(made)["runs"]] == ["finished", "failed", "finished"]
    assert compared[0]["labels"] == ["sft", "mgsr"]
    (made.folder / "kd-seed1" / "fail").unlink()
    calls(made.folder)
    run_sweep(plan(), jobs=1)
    assert calls(made.folder) == ["run kd-seed1"]


@pytest.mark.parametrize(("first", "second", "expected"), [(75, 0, 75), (75, 143, 75), (75, 2, 1), (1, 143, 1)])
def test_a_sweep_is_retryable_if_all_failed_runs_are(plan: Callable[..., Plan], first: int, second: int, expected: int) -> None:
    made = plan()
    for name, code in (("sft-seed1", first), ("kd-seed1", second)):
        if code:
            files.write_text(made.folder / name / "fail", str(code))
    with pytest.raises(TrainingError) as error:
        run_sweep(made, jobs=3)
    assert error.value.exit_code == expected


def test_each_table_is_compared_with_its_own_rows_and_baseline(
    plan: Callable[..., Plan], compared: list[dict[str, Any]]
) -> None:
    groups = {"a": {"rows": ["sft", "kd"]}, "b": {"rows": ["mgsr", "kd"], "published": ["table2"]}}
    made = plan(baseline="kd", groups=groups, published="table1-gpt2")
    pages = run_sweep(made, jobs=1).pages
    endings = ("html", "md", "tex", "csv")
    assert [path.name for path in pages] == [f"compare-{name}.{ending}" for name in "ab" for ending in endings]
    assert [(told["labels"], told["baseline"], told["published"]) for told in compared] == [
        (["sft", "kd"], "kd", ("table1-gpt2",)),
        (["mgsr", "kd"], "kd", ("table2",)),
    ]
    assert held(made)["groups"] == {"a": ["sft", "kd"], "b": ["mgsr", "kd"]}


def test_a_stage_runs_once_before_the_runs_that_share_it(plan: Callable[..., Plan]) -> None:
    tuned = {"model": "small", "finetune": {"updates": 5, "learning_rate": 1e-3}}
    base = {**BASE, "teacher": {"model": "big", "finetune": {"updates": 7}}, "student": tuned}
    made = plan(base=base)
    names = {entry.label: [stage.folder.name.partition("-")[0] for stage in entry.stages] for entry in made.entries}
    assert names == {"sft": ["teacher"], "kd": ["teacher"], "mgsr": ["teacher", "start"]}
    folders = {stage.folder for entry in made.entries for stage in entry.stages}
    assert len(folders) == 2 and {folder.parent for folder in folders} == {made.folder / "stages"}
    run_sweep(made, jobs=1)
    assert sorted(calls(made.folder / "stages")) == sorted(f"train {folder.name}" for folder in folders)
    run_sweep(plan(base=base), jobs=1)
    assert calls(made.folder / "stages") == []


def test_a_failed_stage_stops_only_the_runs_that_need_it(plan: Callable[..., Plan]) -> None:
    tuned = {"model": "small", "finetune": {"updates": 5, "learning_rate": 1e-3}}
    made = plan(base={**BASE, "student": tuned})
    (stage,) = (stage for entry in made.entries for stage in entry.stages)
    files.write_text(stage.folder / "fail", "")
    with pytest.raises(TrainingError, match="mgsr-seed1: not started, since a job that it needs failed"):
        run_sweep(made, jobs=1)
    assert [entry["status"] for entry in held(made)["runs"]] == ["finished", "finished", "waiting"]


def test_a_second_sweep_in_the_same_folder_is_rejected(plan: Callable[..., Plan]) -> None:
    made = plan()
    with (
        locked(made.folder),
        pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} or one of its child processes"),
    ):
        run_sweep(made, jobs=1)
    run_sweep(made, jobs=1)


def test_an_interrupted_sweep_resumes(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan()
    begun: list[str] = []

    def interrupted(progress: object, name: str, folder: Path) -> None:
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep.JobProgress, "started", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(made, jobs=1)
    calls(made.folder)
    run_sweep(plan(), jobs=1)
    assert "run sft-seed1" not in calls(made.folder)
    assert {entry["status"] for entry in held(made)["runs"]} == {"finished"}


def test_parallel_runs_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [local.run_environment(limit).get("OMP_NUM_THREADS") for limit in (1, 2, 8, 20)] == [None, "4", "1", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local.run_environment(8)["OMP_NUM_THREADS"] == "3"


def test_a_score_is_the_mean_over_data_sets_of_the_mean_over_seeds(tmp_path: Path) -> None:
    scores = {"a": {"seeds": {"1": {"rouge_l": 10}, "2": {"rouge_l": 20}}}, "b": {"seeds": {"1": {"rouge_l": 35}}}}
    (tmp_path / "scores.json").write_text(json.dumps({"datasets": scores}))
    assert sweep._score(tmp_path) == "ROUGE-L 25.00"
    assert sweep._score(tmp_path / "none") == ""


def test_a_plan_is_described_by_a_line_per_run(plan: Callable[..., Plan]) -> None:
    made = plan(rows={"mgsr": {"method": "mgsr"}, "dac-kl": {"method": "mgsr"}, "sft": {"method": "sft"}})
    assert made.describe() == [
        f"{made.folder}/mgsr-seed1  waiting  mgsr (seed 1), dac-kl (seed 1)",
        f"{made.folder}/sft-seed1  waiting  sft (seed 1)",
    ]
    assert not made.folder.exists()


def test_the_command_checks_lists_and_runs_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "table.yaml", tmp_path / "out"
    files.write_text(path, yaml.safe_dump({"name": "table", "base": BASE, "rows": ROWS, "seeds": [1]}))
    command = ["sweep", str(path), "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{out}/kd-seed1  waiting  kd (seed 1)"
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--jobs", "0"])
    assert main([*command, "training.update=3"]) == 2
    assert "did you mean 'updates'?" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--jobs", "1", "--only", "kd", "--only", "sft", "training.updates=3"]) == 0
    assert calls(out) == ["run kd-seed1", "run sft-seed1"]
    assert capsys.readouterr().out.splitlines() == [f"{out}/compare.{ending}" for ending in ("html", "md", "tex", "csv")]
    assert main([*command, "--jobs", "1", "training.updates=2"]) == 2
    assert "contains another run (training.updates is 3 there and 2 here)" in capsys.readouterr().err


def test_a_sweep_on_slurm_writes_a_task_for_each_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The test executes the tasks of the array; Slurm does so on a cluster."""
    path, out = tmp_path / "table.yaml", tmp_path / "out"
    files.write_text(path, yaml.safe_dump({"name": "table", "base": BASE, "rows": ROWS, "seeds": [1]}))
    command = ["sweep", str(path), "--out", str(out), "--on", "slurm"]
    assert main([*command, "--jobs", "2"]) == 0 and calls(out) == []
    assert capsys.readouterr().out == f"sbatch --output={out}/slurm-%A_%a.log {out}/slurm-1.sh\n"
    for task in ("0", "2"):
        subprocess.run(["bash", str(out / "slurm-1.sh")], env={**os.environ, "SLURM_ARRAY_TASK_ID": task}, check=True)
    assert calls(out) == ["run kd-seed1", "run sft-seed1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(page).name for page in found["files"]] == [f"compare.{ending}" for ending in ("html", "md", "tex", "csv")]
    assert len(found["commands"]) == 1 and "--array=0-0\n" in (out / "slurm-1.sh").read_text()
    subprocess.run(["bash", str(out / "slurm-1.sh")], env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"}, check=True)
    assert calls(out) == ["run mgsr-seed1"]
    assert main([*command, "--json"]) == 0 and json.loads(capsys.readouterr().out)["commands"] == []


def test_an_executor_that_cannot_be_used_is_an_error_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "table.yaml", tmp_path / "out"
    tree = {"name": "table", "base": BASE, "rows": ROWS, "resources": {"gpus": 0.5}}
    files.write_text(path, yaml.safe_dump(tree))
    for options in (["--on", "slurm"], ["--on", "slurm", "--dry-run"], ["--on", "rya"]):
        assert main(["sweep", str(path), "--out", str(out), *options]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1 and not out.exists()
    files.write_text(path, yaml.safe_dump({**tree, "resources": {"cpus": 0}}))
    assert main(["sweep", str(path), "--out", str(out)]) == 2
    assert f"{path}: resources.cpus = 0: must be >= 1" in capsys.readouterr().err


def test_runs_inherit_the_allowed_code_of_the_sweep(plan: Callable[..., Plan]) -> None:
    made = dataclasses.replace(plan(), allow_code=("mine", "yours"))
    command = sweep._jobs(made, made.statuses())[0].command
    assert list(command[-2:]) == ["--allow-code=mine", "--allow-code=yours"]


def test_an_unknown_label_is_rejected(plan: Callable[..., Plan]) -> None:
    with pytest.raises(RedistillError, match="--only dkm: no such row; the rows are sft, kd, mgsr"):
        plan(only=("dkm",))


def test_a_run_whose_chat_template_prints_the_date_of_its_start_is_finished(plan: Callable[..., Plan]) -> None:
    made = plan(only=("kd",))
    run_sweep(made, jobs=1)
    path = made.folder / "kd-seed1" / "run.json"
    described = json.loads(path.read_text())
    described["config"]["data"]["tokens"]["template_date"] = "2026-11-30T23:59:58"
    path.write_text(json.dumps(described))
    assert list(plan().statuses().values()) == ["waiting", "finished", "waiting"]


def test_runs_with_more_updates_are_extended(plan: Callable[..., Plan]) -> None:
    made = plan(base=BASE | {"training": {"updates": 4}})
    run_sweep(made, jobs=1)
    calls(made.folder)
    longer = plan(base=BASE | {"training": {"updates": 8}})
    assert set(longer.statuses().values()) == {"running"}
    run_sweep(longer, jobs=1)
    assert calls(longer.folder) == [f"run {label}-seed1" for label in ROWS]
    with pytest.raises(ConfigError, match=r"training\.updates is 8 there and 4 here"):
        made.statuses()
    with pytest.raises(ConfigError, match="seed1: contains another run"):
        plan(base=BASE | {"training": {"updates": 16, "batch_size": 2}}).statuses()


SERVED = {**BASE, "teacher": {"kind": "served", "url": "https://teacher.example/v1", "model": "teacher"}}


def test_a_sweep_with_a_server_that_is_not_allowed_starts_no_run(plan: Callable[..., Plan], tmp_path: Path) -> None:
    found = plan(base=SERVED, rows={"kd": {"method": "kd"}})
    with pytest.raises(ConfigError, match=r"--allow-host teacher\.example"):
        run_sweep(found)
    assert not (tmp_path / "out").exists()


def test_the_runs_of_a_sweep_may_use_the_hosts_that_the_sweep_may_use(plan: Callable[..., Plan]) -> None:
    found = plan(base=SERVED, rows={"kd": {"method": "kd"}})
    allow_hosts(["teacher.example", "http://10.0.0.7:8000"])
    try:
        (job,) = sweep._jobs(found, found.statuses())
    finally:
        allow_hosts([])
    assert [*job.command][-2:] == ["--allow-host=teacher.example", "--allow-host=http://10.0.0.7:8000"]
