"""Whole runs whose text a vLLM server generates: training, resuming, failures, and what is rejected."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from tests.servers.fake import Answer, Received, Server, serving
from tests.servers.fake_vllm import VllmScript
from tests.worlds import tiny_run

KEY = "q7w8e9r0t1y2u3i4"


def recipe(folder: Path, url: str, method: str = "gkd", **sections: Any) -> Path:
    """A tiny run with the engine vllm as a recipe."""
    tree = encode_run(tiny_run(folder, method))
    for name in ("policy", "objective"):
        tree.pop(name)
    policy = {"policy": {"kind": "student_generated"}} if method == "gkd" else {}
    engine = {"kind": "vllm", "url": url, "model": "student", **sections.pop("engine", {})}
    path = folder / "recipe.yaml"
    made = {**tree, "engine": engine, "out": str(folder / "out"), **policy, **sections}
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


def lines(folder: Path, out: str = "out") -> list[dict[str, Any]]:
    found = map(json.loads, (folder / out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == "train"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_run(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_and_the_key_of_its_server(world: Path, lora, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("ENGINE_API_KEY", KEY)
    script = VllmScript(world / "student", key=KEY)
    with serving(script) as server:
        student = {"model": str(world / "student"), "lora": lora}
        path = recipe(world, server.url, engine={"api_key_env": "ENGINE_API_KEY"}, student=student)
        assert main(["train", str(path)]) == 0, capsys.readouterr().err
        host = server.url.split("/")[2]
    printed = capsys.readouterr()
    first = next(line for line in printed.err.splitlines() if "engine" in line)
    assert first == (
        f"engine: training data (token ids of prompts) are sent to {host} on this machine, with the API key in $ENGINE_API_KEY"
    )
    assert script.num_loads == 4 and all(line["origin"] == {"student": 4} for line in lines(world))
    written = [file for file in (world / "out").rglob("*") if file.is_file()]
    assert KEY not in printed.err + printed.out
    assert len(written) > 10 and not [file for file in written if KEY.encode() in file.read_bytes()]


def test_a_run_that_lost_its_server_ends_as_the_undisturbed_one(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = VllmScript(world / "student")
    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url, out=str(world / "whole")))]) == 0, capsys.readouterr().err
    left = [30]

    def failing(received: Received) -> Answer:
        left[0] -= 1
        return script(received) if left[0] >= 0 else Answer({"error": {"message": "overloaded"}}, 503)

    script.restart()
    with serving(failing) as server:
        path = recipe(world, server.url, engine={"patience_s": 0.0})
        capsys.readouterr()
        assert main(["train", str(path)]) == 75
        printed = capsys.readouterr().err.splitlines()
        assert "503 (overloaded)" in printed[-1] and "run the same command again to resume" in printed[-1]
        assert any("saved" in line for line in printed)
        left[0] = 1000
        script.restart()
        assert main(["train", str(path)]) == 0
    assert "resumed at step" in capsys.readouterr().err
    names = ("step", "loss", "divergence", "grad_norm")
    whole = [[line[name] for name in names] for line in lines(world, "whole")]
    assert [[line[name] for name in names] for line in lines(world)] == whole


def test_an_old_head_ends_the_run_with_a_checkpoint(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = VllmScript(world / "student")

    def change(received: Received) -> Answer:
        script.keeps_head = len(server.received) > 30
        return script(received)

    with serving(change) as server:
        path = recipe(world, server.url, optimiser={"learning_rate": 0.1})
        assert main(["train", str(path)]) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert "log-probabilities of probe texts differ by" in last and "run the same command again to resume" in last
    assert list((world / "out" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("method", "sections", "text"),
    [
        ("minillm", {}, "samples tokens from a mixture of student and teacher, which the engine does not support"),
        ("kd", {}, "engine.kind = 'vllm': policy fixed generates no student text; use the engine local"),
        ("gkd", {"placement": "sharded"}, "placement = 'sharded': the engine vllm cannot receive the weights"),
        ("gkd", {"engine": {"mode": "colocated"}}, "must not be set in the mode colocated, which uses no server"),
        ("gkd", {"engine": {"transfer": "nccl"}}, "engine.transfer = 'nccl': must be 'reload' or 'extension' or 'restart'"),
        ("gkd", {"engine": {"transfer": "restart"}}, "engine.transfer = 'restart': needs a folder from which"),
        ("gkd", {"engine": {"every": 64}}, "engine.every = 64: the weights that generate text would be up to 63 updates old"),
        ("gkd", {"engine": {"every": 4, "ahead": 3}}, "engine.ahead = 3: must be a multiple or a divisor of every = 4"),
        ("minillm", {"engine": {"ahead": 2, "unsupported": "local"}}, "engine.ahead = 2: must be 1 with the policy rollouts"),
        ("gkd", {"engine": {"folder": ""}}, "engine.folder = '': must be a folder, or null"),
        ("gkd", {"engine": {"every": 0}}, "engine.every = 0: must lie in [1, 1024]"),
        ("gkd", {"engine": {"url": "https://gpu.example/v1"}}, "--allow-host gpu.example"),
    ],
)
def test_what_the_engine_cannot_do_is_rejected(world: Path, method, sections, text, capsys) -> None:
    assert main(["train", str(recipe(world, "http://127.0.0.1:9/v1", method, **sections))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not (world / "out").exists()


@pytest.mark.parametrize("engine", [{"every": 2}, {"ahead": 2}, {"every": 2, "ahead": 2}])
def test_fewer_transfers_are_logged_as_staleness(world: Path, engine, capsys: pytest.CaptureFixture[str]) -> None:
    script = VllmScript(world / "student")
    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url, engine=engine))]) == 0, capsys.readouterr().err
        texts = [each.body["prompt"] for each in server.received if "stop_token_ids" in (each.body or {})]
    assert script.num_loads == 2 and len(texts) == 16
    assert [line["policy"]["staleness"] for line in lines(world)] == [0, 1, 0, 1]


def test_files_in_the_folder_of_the_weights_stay_unchanged(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world / "student"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with serving(VllmScript(world / "student")) as server:
        path = recipe(world, server.url, engine={"folder": str(folder)})
        assert main(["train", str(path)]) == 0, capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_local_engine_draws_ahead(world: Path) -> None:
    path = recipe(world, "http://127.0.0.1:9/v1")
    assert main(["train", str(path), "engine={kind: local, ahead: 3}"]) == 0
    assert [line["policy"]["staleness"] for line in lines(world)] == [0, 1, 2, 0]


@pytest.mark.distributed
def test_two_processes_with_one_server_have_the_losses_of_one(world: Path) -> None:
    script = VllmScript(world / "student")
    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url))]) == 0
        num_loads, asked = script.num_loads, texts_of(server)
        script.restart()
        path = recipe(world, server.url, out=str(world / "two"))
        launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, "-m", "redistill", "train", str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert sorted(texts_of(server)) == sorted([*asked, *asked])  # the same prompts and seeds, each once
    assert script.num_loads == 2 * num_loads  # only the main process transfers weights
    assert done.stderr.count("engine: training data") == 1
    one, two = ([line["divergence"] for line in lines(world, out)] for out in ("out", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def texts_of(server: Server) -> list[tuple[int, tuple[int, ...]]]:
    """The seed and the prompt of each text that a server was asked for."""
    bodies = [each.body for each in server.received if "stop_token_ids" in (each.body or {})]
    return [(body["seed"], tuple(body["prompt"])) for body in bodies]


def test_evaluate_generates_answers_with_the_engine(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(world / "student"), "--data", f"toy={world / 'test.jsonl'}", "--seeds", "10"]
    command += ["--response-tokens", "8", "--prompt-tokens", "80", "--temperature", "0", "--no-repeat-ngram", "0"]
    assert main([*command, "--out", str(world / "local")]) == 0
    with serving(VllmScript(world / "student")) as server:
        engine = f"{{kind: vllm, url: '{server.url}', model: student}}"
        capsys.readouterr()
        assert main([*command, "--out", str(world / "served"), "--engine", engine]) == 0, capsys.readouterr().err
        assert "engine: training data (token ids of prompts) are sent to 127.0.0.1" in capsys.readouterr().err
        assert main([*command, "--out", str(world / "local"), "--engine", engine]) == 2  # not mixed with other answers
    local, served = (json.loads((world / out / "scores.json").read_text()) for out in ("local", "served"))
    assert served["datasets"] == local["datasets"]
    assert (served["settings"]["engine"], "engine" in local["settings"]) == ("vllm", False)
    assert main([*command, "--out", str(world / "other"), "--engine", "{kind: vlm}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("redistill: --engine: engine.kind = 'vlm': no such kind")
