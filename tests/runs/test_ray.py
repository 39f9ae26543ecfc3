"""The executor `ray` on a Ray of this machine; skipped if the package ray is not installed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from redistill.errors import ConfigError, Interrupted
from redistill.runs.executors import Resources, make_executor
from redistill.runs.executors.local import Local
from redistill.runs.jobs import Job
from tests.processes.test_children import SHADOWED

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not find_spec("ray"), reason="the package ray is not installed; pip install 'redistill[ray]'"),
]

NAMES = ("a", "b", "c")
PRINT = """
import os, sys
names = sorted(set(os.environ) - {"PWD", "OLDPWD", "SHLVL", "_"})
for name in names: print(name, os.environ[name])
print(os.getcwd(), sys.path, sys.argv)
"""
DIE_ONCE = """
import os, pathlib, signal, sys, time
mark = pathlib.Path(sys.argv[1])
if not mark.exists():
    mark.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    while True: time.sleep(0.01)
print("complete")
"""
ENDLESS = """
import pathlib, signal, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
while True: time.sleep(0.01)
"""


def job(folder: Path, name: str, code: str, arguments: Sequence[str] = (), needs: Sequence[str] = ()) -> Job:
    return Job(name=name, command=[sys.executable, "-P", "-c", code, *arguments], log=folder / name / "log.txt", needs=needs)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: every module in it leaves a mark."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    monkeypatch.chdir(folder)
    return folder


def execute(
    folder: Path, jobs: Sequence[Job], on_start: Callable[[Job], None] = lambda job: None, **resources: int
) -> dict[str, int]:
    executor = make_executor("ray", folder=folder, limit=2, resources=Resources(**resources))
    return executor.execute(jobs, lock=(), on_start=on_start, on_end=lambda *ended: None).codes


def processes_below(pid: int) -> Iterator[int]:
    """The process and its descendants."""
    yield pid
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            yield from processes_below(int(status.parent.name))


def listening() -> set[str]:
    """Addresses of the TCP sockets on which this process and its descendants listen, in hexadecimal."""
    held = set[str]()
    for pid in processes_below(os.getpid()):
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                held.add(str(link.readlink()))
            except FileNotFoundError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in held}


def is_rejected(address: str) -> bool:
    """Whether the Ray at this address rejects a client without the token."""
    code = "import sys, ray._raylet; ray._raylet.GcsClient(address=sys.argv[1])"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-P", "-c", code, address]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as client:
        assert client.stderr is not None
        line = client.stderr.readline()
        client.kill()
    return "InvalidAuthToken" in line


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_jobs_on_ray_are_those_of_this_machine(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, exit codes, logs, environment, current folder, a killed worker, and who can connect to Ray."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    found, order, rejected = set[str](), list[str](), list[bool]()

    def started(job: Job) -> None:
        import ray  # not before `execute`, which sets the token

        order.append(job.name)
        found.update(listening())
        if len(order) == 1:
            rejected.append(is_rejected(ray.get_runtime_context().gcs_address))

    def jobs(folder: Path) -> list[Job]:
        return [
            job(folder, "needs", PRINT, ["x"], needs=["fails", "killed"]),
            job(folder, "after", PRINT, ["a b", "'$x"], needs=["killed"]),
            job(folder, "killed", DIE_ONCE, [str(tmp_path / "died")]),
            job(folder, "fails", "raise SystemExit(3)"),
        ]

    before = signal.getsignal(signal.SIGTERM)
    codes = execute(tmp_path, jobs(tmp_path / "ray"), started)
    assert signal.getsignal(signal.SIGTERM) == before
    assert codes == {"killed": 0, "after": 0, "fails": 3} and order == ["killed", "fails", "after"]
    assert (tmp_path / "died").exists() and (tmp_path / "ray" / "killed" / "log.txt").read_text() == "complete\n"
    assert len(found) > 0 and found <= LOOPBACK and rejected == [True]
    assert not (tmp_path / "mark").exists(), "a module of the current folder was imported"
    assert not any(name.startswith("RAY_") for name in os.environ)
    Local(limit=2).execute(jobs(tmp_path / "local"), lock=(), on_start=lambda job: None, on_end=lambda *ended: None)
    ours, expected = ((tmp_path / where / "after" / "log.txt").read_text().splitlines() for where in ("ray", "local"))
    assert set(expected) <= set(ours), "the variables of this machine"
    assert ours[-1] == expected[-1]
    assert not [line for line in ours if line.startswith("RAY_")]


def test_an_interruption_stops_the_runs_and_they_save_their_state(tmp_path: Path) -> None:
    mark = tmp_path / "started"

    def interrupt(job: Job) -> None:
        while not mark.exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute(tmp_path, [job(tmp_path, "a", ENDLESS, [str(mark)])], interrupt)
    assert (tmp_path / "a" / "log.txt").read_text() == "saved\n"
    with pytest.raises(ConfigError, match=r"no machine of the Ray cluster has cpus = 1000, gpus = 0, memory_gb = None"):
        make_executor("ray", folder=tmp_path, resources=Resources(cpus=1000)).execute(
            [job(tmp_path, "b", "")], lock=(), on_start=lambda job: None, on_end=lambda *ended: None
        )
