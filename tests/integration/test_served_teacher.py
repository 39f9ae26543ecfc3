"""Whole runs with a served teacher: training, resuming, counting, and what the run folder contains."""

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
from tests.servers.fake import Answer, ModelScript, Received, Server, serving
from tests.worlds import tiny_run

KEY = "q7w8e9r0t1y2u3i4"


def recipe(folder: Path, url: str | list[str], method: str = "kd", **sections: Any) -> Path:
    """A tiny run with a served teacher as a recipe."""
    tree = encode_run(tiny_run(folder, method))
    for name in ("policy", "objective"):
        tree.pop(name)
    teacher = {"kind": "served", "url": url, "model": "teacher", "top_k": 16, **sections.pop("teacher", {})}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tree, "teacher": teacher, "out": str(folder / "out"), **sections}), encoding="utf-8")
    return path


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_run(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["kd", "gkd", "distillm", "seqkd"])
def test_a_run_with_a_served_teacher(world: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ModelScript(world / "teacher")) as server:
        command = "run" if method == "kd" else "train"
        assert main([command, str(recipe(world, server.url, method))]) == 0, capsys.readouterr().err
    assert all(line["loss"] > 0 for line in lines(world))
    if method != "seqkd":
        assert all(line["divergence"] > 0 and line["teacher_requests"] >= 1 for line in lines(world))
    described = json.loads((world / "out" / "run.json").read_text())
    assert described["models"]["teacher"] == {"name": "teacher"}
    assert described["cost"]["teacher_requests"] == sum(line.get("teacher_requests", 0) for line in lines(world))
    assert described["cost"]["teacher_tokens"] > 100


def test_phrases_are_compared_with_the_classes_that_a_server_lists(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = {"divergence": "forward_kl", "span_weight": 1.0, "span": {"form": "likelihood"}}
    with serving(ModelScript(world / "teacher")) as server:
        assert main(["train", str(recipe(world, server.url, objective=objective))]) == 0, capsys.readouterr().err
    assert any(line["span"] > 0 for line in lines(world) if "span" in line)


def test_what_is_sent_where_is_printed_first(world: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    with serving(ModelScript(world / "teacher", key=KEY)) as server:
        path = recipe(world, server.url, teacher={"api_key_env": "TEACHER_API_KEY", "price": 2.0})
        assert main(["train", str(path)]) == 0
        host = server.url.split("/")[2]
    printed = capsys.readouterr()
    first = next(line for line in printed.err.splitlines() if "teacher" in line)
    assert first == (
        f"teacher: training data (token ids of prompts and answers) are sent to {host} on this machine, with the API key in "
        "$TEACHER_API_KEY"
    )
    cost = json.loads((world / "out" / "run.json").read_text())["cost"]
    assert cost["teacher_price"] == pytest.approx(2 * cost["teacher_tokens"] / 1e6, abs=1e-6)
    assert KEY not in printed.err + printed.out
    written = [file for file in (world / "out").rglob("*") if file.is_file()]
    assert len(written) > 10
    assert not [file for file in written if KEY.encode() in file.read_bytes()]


def test_the_loss_is_that_of_the_local_teacher_on_the_same_support(world: Path) -> None:
    with serving(ModelScript(world / "teacher")) as server:
        assert main(["train", str(recipe(world, server.url, teacher={"top_k": 64}))]) == 0
    served = [line["divergence"] for line in lines(world)]
    (world / "my_teacher.py").write_text(TOP_K)
    path = recipe(world, server.url, out=str(world / "local"))
    tree = yaml.safe_load(path.read_text())
    tree["teacher"] = {"kind": "my_teacher:TopK", "model": str(world / "teacher"), "k": 64}
    path.write_text(yaml.safe_dump(tree))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(world)
        assert main(["train", str(path), "--allow-code", "my_teacher"]) == 0
    local = [json.loads(line) for line in (world / "local" / "metrics.jsonl").read_text().splitlines()]
    assert served == pytest.approx([line["divergence"] for line in local if line["kind"] == "train"], abs=1e-5)


class Failing:
    """A model server that fails after a number of requests, until it is repaired."""

    def __init__(self, script: ModelScript, after: int) -> None:
        self.script, self.left = script, after

    def __call__(self, received: Received) -> Answer:
        self.left -= 1
        return self.script(received) if self.left >= 0 else Answer({"error": {"message": "overloaded"}}, 503)


def test_a_run_that_lost_its_server_is_resumed_as_if_undisturbed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = ModelScript(world / "teacher")
    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url, out=str(world / "whole")))]) == 0
    failing = Failing(script, after=12)
    with serving(failing) as server:
        path = recipe(world, server.url, teacher={"patience_s": 0.0})
        capsys.readouterr()
        assert main(["train", str(path)]) == 75
        printed = capsys.readouterr().err.splitlines()
        assert "503 (overloaded)" in printed[-1] and "run the same command again to resume" in printed[-1]
        assert any("saved" in line for line in printed)
        failing.left = 1000
        assert main(["train", str(path)]) == 0
    assert "resumed at step" in capsys.readouterr().err
    names = ("step", "loss", "divergence", "grad_norm")
    whole = [json.loads(line) for line in (world / "whole" / "metrics.jsonl").read_text().splitlines()]
    expected = [[line[name] for name in names] for line in whole if line["kind"] == "train"]
    assert [[line[name] for name in names] for line in lines(world)] == expected


def test_a_run_is_not_resumed_with_another_model(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = ModelScript(world / "teacher")
    failing = Failing(script, after=12)
    with serving(failing) as server:
        path = recipe(world, server.url, teacher={"patience_s": 0.0})
        assert main(["train", str(path)]) == 75
        failing.left, script.shift = 1000, 5.0
        capsys.readouterr()
        assert main(["train", str(path)]) == 2
        assert "another model than when the run was started" in capsys.readouterr().err.splitlines()[-1]
        script.shift = 1e-5  # a rounding error
        assert main(["train", str(path)]) == 0


@pytest.mark.parametrize("method", ["kd", "seqkd"])
def test_other_weights_in_the_middle_of_a_run_end_it_after_the_patience(
    world: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with the same server afterwards has the results of an undisturbed one."""
    script, num_texts = ModelScript(world / "teacher"), [0]
    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url, method, out=str(world / "whole")))]) == 0

    def change(received: Received) -> Answer:
        num_texts[0] += "stop_token_ids" in (received.body or {})
        if (method == "kd" and len(server.received) == 13) or num_texts[0] == 3:
            script.shift = 50.0
        return script(received)

    with serving(change) as server:
        path = recipe(world, server.url, method, teacher={"patience_s": 0.0})
        capsys.readouterr()
        assert main(["train", str(path)]) == 75
        last = capsys.readouterr().err.splitlines()[-1]
        assert "log-probabilities of the probe text differ by" in last and "serve the original model" in last
        assert bool(list((world / "out" / "checkpoints").glob("step-*"))) == (method == "kd")
        script.shift, num_texts[0] = 0.0, 10
        assert main(["train", str(path)]) == 0
    whole = [json.loads(line) for line in (world / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines(world)] == [line["loss"] for line in whole if line["kind"] == "train"]


def test_replicas_share_the_requests_and_one_that_fails_is_skipped(world: Path) -> None:
    script = ModelScript(world / "teacher")
    failing = Failing(script, after=12)
    with serving(script) as one, serving(failing) as two:
        path = recipe(world, [one.url, two.url], teacher={"prompts_per_request": 1})
        assert main(["train", str(path)]) == 0
        assert min(len(one.received), len(two.received)) > 10


def test_methods_that_need_all_classes_are_rejected(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, text in {"mgsr": "whole vocabulary", "minillm": "teacher statistics"}.items():
        capsys.readouterr()
        assert main(["train", str(recipe(world, "http://127.0.0.1:9/v1", method))]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line and "16 most probable classes" in line
    assert not (world / "out").exists()


def test_commands_that_need_no_teacher_connect_to_no_server(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ModelScript(world / "teacher")) as server:
        for command in ("config", "estimate"):
            assert main([command, str(recipe(world, "https://teacher.example/v1"))]) == 0, capsys.readouterr().err
            assert main([command, str(recipe(world, server.url))]) == 0
    assert server.received == []


def in_two_processes(path: Path) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--shutdown-timeout", "60", "-m", "redistill", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.distributed
def test_two_processes_have_the_losses_of_one_also_after_one_of_them_lost_its_server(world: Path) -> None:
    script, num_asked = ModelScript(world / "teacher"), [0]

    def fails_once(received: Received) -> Answer:
        # Each process sends one request per update, with several prompts: the one of a process at the third update fails.
        prompts = (received.body or {}).get("prompt", [])
        is_of_update = len(prompts) > 1 and isinstance(prompts[0], list)
        num_asked[0] += is_of_update
        fails = is_of_update and num_asked[0] == 6
        return Answer({"error": {"message": "overloaded"}}, 503) if fails else script(received)

    with serving(script) as server:
        assert main(["train", str(recipe(world, server.url))]) == 0
        one = lines(world)
    with serving(fails_once) as server:
        path = recipe(world, server.url, teacher={"patience_s": 0.0}, out=str(world / "two"))
        failed = in_two_processes(path)
        assert failed.returncode != 0 and "exitcode  : 75" in failed.stderr, failed.stderr[-3000:]
        assert "saved" in failed.stderr and "503 (overloaded)" in failed.stderr, failed.stderr[-3000:]
        assert [step.name for step in (world / "two" / "checkpoints").glob("step-*")] == ["step-2"]
        done = in_two_processes(path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("teacher: training data") == 1 and "resumed at step 2" in done.stderr
    two = [json.loads(line) for line in (world / "two" / "metrics.jsonl").read_text().splitlines()]
    two = [line for line in two if line["kind"] == "train"]
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["divergence"] for line in two] == pytest.approx([line["divergence"] for line in one], rel=1e-4)
    assert [line["teacher_requests"] for line in two] == [2 * line["teacher_requests"] for line in one]


def test_a_host_elsewhere_needs_the_option(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(world, "https://teacher.example/v1")
    capsys.readouterr()
    assert main(["train", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "teacher.example" in line and "--allow-host teacher.example" in line
    assert not (world / "out").exists()


def test_the_doctor_examines_a_recipe_with_a_served_teacher(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ModelScript(world / "teacher")) as server:
        code = main(["doctor", str(recipe(world, server.url))])
    printed = capsys.readouterr()
    assert code in (0, 1) and "Traceback" not in printed.err + printed.out
    assert "training data (token ids of prompts and answers) are sent to 127.0.0.1" in printed.err


def served_text(server: Server) -> list[tuple[Any, ...]]:
    return [(r.body["seed"], tuple(r.body["prompt"])) for r in server.received if r.body and "stop_token_ids" in r.body]


def test_each_text_of_the_teacher_has_a_seed_of_its_own_and_is_stored(world: Path) -> None:
    with serving(ModelScript(world / "teacher")) as server:
        assert main(["train", str(recipe(world, server.url, "seqkd"))]) == 0
        asked = served_text(server)
    assert len({seed for seed, _ in asked}) == len(asked) >= 12
    stored = (world / "out" / "teacher-responses.jsonl").read_text().splitlines()
    assert len(stored) == len(asked) + 1


TOP_K = """
from collections.abc import Sequence
from dataclasses import dataclass
import torch
from redistill.contracts import TeacherCapabilities, TopClasses
from redistill.models.load import ModelConfig, load_model
from redistill.teachers.local import LocalTeacher

@dataclass(frozen=True, kw_only=True)
class TopK:
    model: str
    k: int = 64

    @property
    def capabilities(self):
        return TeacherCapabilities(full_vocabulary=False, top_k=self.k)

    def build(self, tools):
        model, _ = load_model(ModelConfig(model=self.model))
        return TopKTeacher(LocalTeacher(model, vocabulary=tools.vocabulary, device=tools.device), self.capabilities)

class TopKTeacher:
    def __init__(self, model, capabilities):
        self._model, self.capabilities = model, capabilities
    def prepare(self, sequences): pass
    def rows(self, batch):
        logits = self._model.rows(batch)
        def target(rows):
            logp_NV = logits(rows).log_softmax(dim=-1)
            logp_NK, class_NK = logp_NV.topk(self.capabilities.top_k, dim=-1)
            return TopClasses(class_NK, logp_NK, logp_NV.scatter(-1, class_NK, -torch.inf).logsumexp(dim=-1))
        return target
    def faults(self): return 0
    def release(self): pass
"""
