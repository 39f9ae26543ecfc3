"""Child processes that die with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import redistill
from redistill.processes.tether import run_tethered

SOURCE = str(Path(redistill.__file__).parents[1])
PATIENCE_S = 60.0
WORKER = """
import sys
from redistill.processes.tether import run_tethered
sys.exit(run_tethered([sys.executable, "-c", sys.argv[1]], sys.argv[2], {}, ".", 0o077))
"""
ENDLESS = "import os, pathlib, time\npathlib.Path({mark!r}).write_text(str(os.getpid()))\nwhile True: time.sleep(0.01)"


def start(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A worker process whose child runs `code`."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.Popen([sys.executable, "-c", WORKER, code, str(folder / "log.txt")], env=environment, cwd=folder)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text()


def has_ended(pid: int) -> bool:
    """Whether the process is dead; a zombie, which nobody waits for, counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def test_the_child_has_the_folder_the_permissions_the_environment_and_the_log_of_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("OF_THE_WORKER", "1")
    monkeypatch.setenv("OF_BOTH", "worker")
    names = ("OF_THE_WORKER", "OF_BOTH", "RAY_AUTH_TOKEN", "PYTHONSAFEPATH")
    shown = f"print(os.getcwd(), os.umask(0), *map(os.environ.get, {names}))"
    code = f"import os, sys\n{shown}\nprint('error', file=sys.stderr)\nsys.exit(7)"
    log = tmp_path / "folder" / "log.txt"
    assert run_tethered([sys.executable, "-c", code], str(log), {"OF_BOTH": "call"}, str(tmp_path), 0o027) == 7
    assert sorted(log.read_text().splitlines()) == sorted([f"{tmp_path} {0o027} 1 call None 1", "error"])


def test_no_child_survives_a_killed_worker(tmp_path: Path) -> None:
    worker = start(tmp_path, ENDLESS.format(mark=str(tmp_path / "pid")))
    child = int(wait_for(tmp_path / "pid"))
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + PATIENCE_S
    while not has_ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_worker_ends_its_child_with_sigterm(tmp_path: Path) -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    worker = start(tmp_path, code + ENDLESS.format(mark=str(tmp_path / "pid")))
    child = int(wait_for(tmp_path / "pid"))
    worker.send_signal(signal.SIGINT)
    assert worker.wait() == 143 and has_ended(child)


def test_a_command_does_not_start_if_its_worker_is_already_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "redistill.processes.tether", "1", sys.executable, "-c", "print('started')"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (137, "")
