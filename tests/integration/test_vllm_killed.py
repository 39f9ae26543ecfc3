"""A real vLLM server that is killed in the middle of a run; run with `pytest -m vllm`.

VLLM_EXECUTABLE is the path of the command `vllm`, with which the test starts a server.  VLLM_ENGINE_MODEL is the folder of a
Llama model.
"""

import os
import socket
import subprocess
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
FLAGS = ["--served-model-name", "student", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]


class Vllm:
    """A vLLM server in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        command = [os.environ["VLLM_EXECUTABLE"], "serve", str(self.folder), *FLAGS, "--port", str(self.port)]
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


def test_a_run_whose_server_is_killed_ends_as_the_undisturbed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = os.environ["VLLM_ENGINE_MODEL"]
    assert main(["export", model, "--to", "vllm", "--out", str(tmp_path / "served")]) == 0
    tiny_run(tmp_path)
    server = Vllm(tmp_path / "served")
    try:
        server.wait()
        training = {"updates": 5, "batch_size": 4, "log_every": 1}
        models = {"student": {"model": model}, "teacher": {"model": model}, "training": training}
        assert main(["train", str(recipe(tmp_path, server.url, out=str(tmp_path / "whole"), **models))]) == 0
        path, metrics = recipe(tmp_path, server.url, **models), tmp_path / "out" / "metrics.jsonl"

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
    whole, disturbed = ([[line[name] for name in names] for line in lines(tmp_path, out)] for out in ("whole", "out"))
    assert disturbed == whole and len(whole) == 5
