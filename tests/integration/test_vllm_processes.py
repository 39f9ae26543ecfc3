"""Runs with vLLM servers that the test starts, kills and restarts; run with `pytest -m vllm`.

VLLM_EXECUTABLE is the path of the command `vllm`, with which the test starts a server.  VLLM_ENGINE_MODEL is the folder of a
Llama model.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from redistill.cli.main import main
from tests.integration.test_vllm_engine import lines, recipe
from tests.worlds import tiny_run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif("VLLM_EXECUTABLE" not in os.environ or "VLLM_ENGINE_MODEL" not in os.environ, reason="needs vLLM"),
]
TRAINING = {"updates": 5, "batch_size": 4, "log_every": 1}
FLAGS = ["--served-model-name", "student", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]


class Vllm:
    """A vLLM server in a process group of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.flags = folder, flags
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        command = [os.environ["VLLM_EXECUTABLE"], "serve", str(self.folder), *FLAGS, *self.flags, "--port", str(self.port)]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        log = (self.folder.parent / "server.log").open("ab")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        while True:
            assert self.process.poll() is None, (self.folder.parent / "server.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/version", timeout=5):
                    return
            except OSError:
                time.sleep(1)

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of the model, which is exported to `tmp_path`/served; also the files of a tiny run."""
    folder = os.environ["VLLM_ENGINE_MODEL"]
    tiny_run(tmp_path)
    assert main(["export", folder, "--to", "vllm", "--out", str(tmp_path / "served")]) == 0
    return folder


def settings(model: str, updates: int = 5) -> dict[str, dict[str, object]]:
    return {"student": {"model": model}, "teacher": {"model": model}, "training": {**TRAINING, "updates": updates}}


def values(folder: Path, out: str, *names: str) -> list[list[float]]:
    return [[line[name] for name in names] for line in lines(folder, out)]


def test_a_run_whose_server_is_killed_ends_as_the_undisturbed_one(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Vllm(tmp_path / "served")
    try:
        server.wait()
        assert main(["train", str(recipe(tmp_path, server.url, out=str(tmp_path / "whole"), **settings(model)))]) == 0
        path, metrics = recipe(tmp_path, server.url, **settings(model)), tmp_path / "out" / "metrics.jsonl"

        def disturb() -> None:
            while not metrics.exists() or metrics.read_text().count('"train"') < 2:
                time.sleep(0.05)
            server.kill()
            server.start()

        thread = threading.Thread(target=disturb)
        thread.start()
        capsys.readouterr()
        assert main(["train", str(path)]) == 0
        thread.join()
        assert "the request is tried again" in capsys.readouterr().err
    finally:
        server.kill()
    names = ("step", "loss", "divergence", "grad_norm")
    assert values(tmp_path, "out", *names) == values(tmp_path, "whole", *names)
    assert len(lines(tmp_path, "out")) == 5


def test_restarted_servers_and_two_processes_have_the_losses_of_one_process(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Vllm(tmp_path / "served")
    try:
        server.wait()
        assert main(["train", str(recipe(tmp_path, server.url, out=str(tmp_path / "one"), **settings(model, 2)))]) == 0
        path = recipe(tmp_path, server.url, out=str(tmp_path / "two"), **settings(model, 2))
        launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([*launcher, "-m", "redistill", "train", str(path)], env=environment, check=True)
    finally:
        server.kill()
    weights = tmp_path / "weights" / "redistill-student"
    shutil.copytree(tmp_path / "served", weights)
    server = Vllm(weights, "--tokenizer", model)
    done = threading.Event()

    def restart() -> None:
        inode = weights.stat().st_ino
        while not done.wait(0.5):
            found = weights.stat().st_ino if weights.exists() else inode
            if found != inode:
                inode = found
                server.kill()
                server.start()

    watcher = threading.Thread(target=restart)
    try:
        server.wait()
        watcher.start()
        engine = {"transfer": "restart", "folder": str(weights.parent), "patience_s": 1800}
        capsys.readouterr()
        assert main(["train", str(recipe(tmp_path, server.url, engine=engine, **settings(model, 2)))]) == 0
        assert capsys.readouterr().err.count("for a restart of the servers") == 2
    finally:
        done.set()
        watcher.join()
        server.kill()
    one = values(tmp_path, "one", "divergence")
    assert [value for (value,) in values(tmp_path, "two", "divergence")] == pytest.approx([value for (value,) in one], rel=1e-4)
    assert values(tmp_path, "out", "divergence") == one
