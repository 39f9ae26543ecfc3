"""Executors of sweeps: names, resources, and the scripts of array jobs."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redistill.errors import ConfigError, OutputError, TrainingError
from redistill.runs.executors import Outcome, Resources, executor_names, make_executor
from redistill.runs.executors import ray as on_ray
from redistill.runs.jobs import Job

HOSTILE = ["$(touch mark)", "`touch mark`", "'; touch mark; '", '"; touch mark; "', "a\nb\ttouch mark", "-rf", "*", "%a", "é\\"]


def job(folder: Path, name: str, arguments: Sequence[str] = (), needs: Sequence[str] = ()) -> Job:
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.getcwd()]))"
    return Job(name=name, command=[sys.executable, "-c", code, *arguments], log=folder / name / "log.txt", needs=needs)


def write(folder: Path, jobs: Sequence[Job], limit: int | None = None, **resources: Any) -> Outcome:
    executor = make_executor("slurm", folder=folder, limit=limit, resources=Resources(**resources))
    return executor.execute(jobs, lock=(), on_start=lambda job: None, on_end=lambda *ended: None)


def run_task(script: Path, task: int, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables |= {"SLURM_ARRAY_TASK_ID": str(task), **environment}
    return subprocess.run(["bash", str(script)], env=variables, cwd="/", capture_output=True, text=True)


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("rya", "--on rya: no such executor; choose from local, ray, slurm"),
        ("local=here", "--on local=here: has no address"),
        ("slurm=here", "--on slurm=here: has no address"),
        ("ray=", "--on ray=: the address must be HOST:PORT"),
        ("ray=ray://head:10001", "--on ray=ray://head:10001: the address must be HOST:PORT"),
    ],
)
def test_an_executor_that_does_not_exist_is_an_error_of_one_line(tmp_path: Path, on: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        make_executor(on, folder=tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_ray_is_an_error_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'redistill\[ray\]'"):
        make_executor("ray", folder=tmp_path)


def test_every_executor_is_a_module_of_the_package(tmp_path: Path) -> None:
    assert executor_names() == ["local", "ray", "slurm"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpus": 0}, "cpus = 0: must be >= 1"),
        ({"gpus": 1.5}, "gpus = 1.5: must be a fraction below 1"),
        ({"gpus": float("nan")}, "gpus = nan: must be"),
        ({"gpus": -1.0}, "gpus = -1.0: must be"),
        ({"memory_gb": 0.0}, "memory_gb = 0.0: must be > 0"),
        ({"memory_gb": float("inf")}, "memory_gb = inf: must be > 0"),
        ({"retries": -1}, "retries = -1: must be >= 0"),
    ],
)
def test_resources_out_of_range_are_rejected(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Resources(**changes)


@pytest.mark.parametrize("gpus", [0, 0.5, 1.0, 4])
def test_a_number_of_gpus_is_a_fraction_below_1_or_whole(gpus: float) -> None:
    assert Resources(gpus=gpus).gpus == gpus


def test_slurm_rejects_a_fraction_of_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Slurm needs a whole number of GPUs"):
        make_executor("slurm", folder=tmp_path, resources=Resources(gpus=0.5))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "127.0.0.1:70000"])
def test_a_cluster_that_cannot_be_reached_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: object())
    with socket.socket() as unused:  # bound but not listening
        unused.bind(("127.0.0.1", 0))
        executor = make_executor("ray=" + address.format(port=unused.getsockname()[1]), folder=tmp_path)
        with pytest.raises(TrainingError, match=r"--on ray=127\.0\.0\.1:\d+: the Ray cluster cannot be reached"):
            executor.execute([job(tmp_path, "a")], lock=(), on_start=lambda job: None, on_end=lambda *ended: None)


def test_a_ray_that_starts_too_slowly_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because...")

    fake = SimpleNamespace(__spec__=object(), init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    executor = make_executor("ray=auto", folder=tmp_path)
    with pytest.raises(TrainingError) as error:
        executor.execute([job(tmp_path, "a")], lock=(), on_start=lambda job: None, on_end=lambda *ended: None)
    assert str(error.value) == ("--on ray: the Ray cluster cannot be reached (The current node timed out during startup.)")


def test_secrets_and_devices_are_not_sent_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "TEACHER_API_KEY", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN", "REDISTILL_CACHE"):
        monkeypatch.setenv(name, "a value of a variable")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sent = on_ray.sent_environment(cpus=3)
    assert sent["REDISTILL_CACHE"] == "a value of a variable"
    assert {"HF_TOKEN", "TEACHER_API_KEY", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN"}.isdisjoint(sent)
    assert (sent["OMP_NUM_THREADS"], sent["PYTHONSAFEPATH"]) == ("3", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert on_ray.sent_environment(cpus=3)["OMP_NUM_THREADS"] == "2"


# --- Slurm --------------------------------------------------------------------------------------------------------------


def test_each_task_of_an_array_runs_its_job_with_its_arguments_and_log(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $(touch mark) folder %a"
    jobs = [job(folder, "a", HOSTILE), job(folder, "b", ["2"])]
    (command,) = write(folder, jobs, cpus=3).commands
    for task in (0, 1):
        done = run_task(folder / "slurm-1.sh", task)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for each in jobs:
        (line,) = each.log.read_text().splitlines()
        assert line == subprocess.run(each.command, env={"OMP_NUM_THREADS": "3"}, capture_output=True, text=True).stdout.strip()
    assert not list(Path.cwd().glob("mark")) and not list(tmp_path.rglob("mark"))
    assert subprocess.run(["bash", "-nc", command]).returncode == 0


def test_a_task_that_is_requeued_appends_to_its_log(tmp_path: Path) -> None:
    only = job(tmp_path, "a")
    write(tmp_path, [only])
    for _ in range(2):
        assert run_task(tmp_path / "slurm-1.sh", 0, OMP_NUM_THREADS="7").returncode == 0
    assert len(only.log.read_text().splitlines()) == 2 and '"7"' in only.log.read_text()


def test_the_exit_code_of_a_task_is_that_of_its_run(tmp_path: Path) -> None:
    failing = dataclasses.replace(job(tmp_path, "a"), command=[sys.executable, "-c", "raise SystemExit(75)"])
    write(tmp_path, [failing])
    assert run_task(tmp_path / "slurm-1.sh", 0).returncode == 75
    assert run_task(tmp_path / "slurm-1.sh", 1).returncode == 2


def test_files_of_a_task_have_the_permissions_of_the_command(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write(tmp_path, [job(tmp_path, "a")])
    finally:
        os.umask(before)
    (tmp_path / "a" / "log.txt").unlink()
    run_task(tmp_path / "slurm-1.sh", 0)
    assert (tmp_path / "a" / "log.txt").stat().st_mode & 0o777 == 0o600


def test_a_script_requests_the_resources_of_a_run(tmp_path: Path) -> None:
    write(tmp_path, [job(tmp_path, name) for name in "abc"], limit=2, cpus=4, gpus=1, memory_gb=1.048576)
    lines = (tmp_path / "slurm-1.sh").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--array=0-2%2", "--cpus-per-task=4", "--gres=gpu:1", "--mem=1000M", "--requeue"} <= set(options)
    assert lines[1 : len(options) + 1] == [f"#SBATCH {option}" for option in options], "sbatch ignores options after a command"


def test_jobs_that_others_need_are_in_an_earlier_array(tmp_path: Path) -> None:
    needs = {"t": [], "s": ["t"], "x": [], "y": ["t"], "z": ["t", "s"]}
    jobs = [job(tmp_path, name, needs=needed) for name, needed in needs.items()]
    commands = write(tmp_path, jobs).commands
    scripts = [(tmp_path / f"slurm-{number}.sh").read_text() for number in (1, 2, 3)]
    assert [[name for name in needs if f"/{name}/log.txt" in script] for script in scripts] == [["t"], ["s"], ["x", "y", "z"]]
    assert ["--dependency=afterok:$previous" in command for command in commands] == [False, True, True]
    assert [command.startswith("previous=$(sbatch --parsable ") for command in commands] == [True, True, False]


def test_commands_submit_the_stages_in_order(tmp_path: Path) -> None:
    """A program named sbatch records its arguments and prints the number of its job."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" "" >> {tmp_path}/calls\necho 41\n')
    sbatch.chmod(0o755)
    folder = tmp_path / "a %b 'c'"
    commands = write(folder, [job(folder, "t"), job(folder, "x", needs=["t"])]).commands
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", "\n".join(commands)], env={"PATH": path}, check=True, capture_output=True)
    first, second = (tmp_path / "calls").read_text().strip().split("\n\n")
    logs = f"--output={str(folder).replace('%', '%%')}/slurm-%A_%a.log"
    assert first.split("\n") == ["--parsable", logs, f"{folder}/slurm-1.sh"]
    assert second.split("\n") == ["--dependency=afterok:41", "--kill-on-invalid-dep=yes", logs, f"{folder}/slurm-2.sh"]


def test_the_log_of_a_task_is_not_a_link(tmp_path: Path) -> None:
    only = job(tmp_path, "a")
    only.log.parent.mkdir()
    only.log.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="remove the link"):
        write(tmp_path, [only])


def test_without_jobs_nothing_is_written(tmp_path: Path) -> None:
    assert not write(tmp_path, []).commands and not list(tmp_path.iterdir())
