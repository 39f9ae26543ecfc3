"""vLLM on this machine, with a stand-in for the package vllm: transfer, text, failures, and what is rejected."""

import importlib.metadata
import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redistill.contracts import Sampling
from redistill.errors import ConfigError, Interrupted, ServerError, ServerUnavailableError
from redistill.generation import vllm_colocated
from redistill.generation.vllm import VllmEngine, VllmEngineConfig
from redistill.generation.vllm_colocated import ColocatedConfig, ColocatedVllm, import_vllm
from redistill.processes import signals
from tests.generation.test_vllm import GREEDY, World, requests
from tests.servers.fake import serving
from tests.servers.fake_vllm import VllmScript
from tests.worlds import LLAMA, write_model


class FakeLLM:
    """Has the methods of vLLM's class LLM that are used; a fake server computes the text."""

    def __init__(self, package: "FakePackage", model: str, **settings: Any) -> None:
        self.package, self.settings = package, settings
        self.script = VllmScript(model, tokenizer=package.tokenizer)

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Any]:
        self.package.fail("generate")
        self.package.act()
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            body = {**params, "vllm_xargs": params.get("extra_args")}
            choice = self.script.choice(0, prompt["prompt_token_ids"], body)
            entries = [
                {int(key.removeprefix("token_id:")): SimpleNamespace(logprob=value) for key, value in each.items()}
                for each in choice["logprobs"]["top_logprobs"]
            ]
            self.package.change(choice)
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=choice["token_ids"], logprobs=entries)]))
        return found

    def collective_rpc(self, method: str, *, kwargs: Any) -> None:
        self.package.fail("collective_rpc")
        self.script.reload({"method": method, "kwargs": kwargs})

    def reset_prefix_cache(self) -> bool:
        self.script.reset({})
        return True


class FakePackage:
    """The package vllm; `failing` has the names of the methods that fail once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.failing, self.started = tokenizer, set[str](), list[FakeLLM]()
        self.change = lambda choice: None
        self.act = lambda: None

    def fail(self, name: str) -> None:
        if name in self.failing:
            self.failing.remove(name)
            raise RuntimeError("EngineCore encountered an issue.\nSee stack trace \x1b[31m(above)")

    def LLM(self, **settings: Any) -> FakeLLM:
        self.fail("LLM")
        self.started.append(FakeLLM(self, **settings))
        return self.started[-1]

    def SamplingParams(self, **settings: Any) -> dict[str, Any]:
        assert settings["n"] == 1 and settings["detokenize"] is False
        return settings


@pytest.fixture
def tied(tmp_path):
    write_model(tmp_path, LLAMA, 2)
    return tmp_path


@pytest.fixture
def package(tied, monkeypatch) -> FakePackage:
    made = FakePackage(tied)
    monkeypatch.setattr(vllm_colocated, "import_vllm", lambda: made)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0")
    return made


def engine_of(world: World, **settings: Any) -> VllmEngine:
    return VllmEngineConfig(mode="colocated", **settings).build(world.tools())


@pytest.mark.parametrize("lora", [False, True])
def test_greedy_text_is_that_of_the_student_after_each_transfer(tied, package, lora) -> None:
    world = World(tied, lora)
    engine = engine_of(world, colocated=ColocatedConfig(dtype="float32", positions=256))
    for step in range(3):
        engine.sync(world.student, step)
        found = engine.generate(requests(), GREEDY)
        assert [each.token_ids for each in found] == world.local(requests())
        assert all(len(each.logprobs) == len(each.token_ids) for each in found)
        world.update(seed=step)
    (llm,) = package.started
    assert llm.settings["dtype"] == "float32" and llm.settings["max_model_len"] == 256
    assert llm.settings["skip_tokenizer_init"] and "trust_remote_code" not in llm.settings
    assert world.said == []


def test_text_has_the_seeds_of_a_server(tied, package) -> None:
    world = World(tied)
    local = engine_of(world)
    local.sync(world.student, 0)
    with serving(VllmScript(tied)) as server:
        served = world.engine(server)
        served.sync(world.student, 0)
        sampling = Sampling(temperature=0.7)
        assert local.generate(requests(), sampling) == served.generate(requests(), sampling)


@pytest.mark.parametrize("fault", ["keeps_head", "keeps_cache"])
def test_a_stale_head_and_a_stale_prefix_cache_are_detected(tied, package, fault) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    setattr(package.started[0].script, fault, True)
    world.update()
    with pytest.raises(ServerUnavailableError, match="vLLM on this machine does not have the student's weights"):
        engine.sync(world.student, 1)


def test_vllm_that_fails_is_started_again_from_the_weights(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    world.update()
    engine.sync(world.student, 0)
    expected = engine.generate(requests(), Sampling())
    package.failing.add("generate")
    assert engine.generate(requests(), Sampling()) == expected
    assert len(package.started) == 2
    assert all(len(line.splitlines()) == 1 and "\x1b" not in line for line in world.said)


def test_vllm_that_cannot_be_started_is_one_line_with_exit_code_2(tied, package) -> None:
    world = World(tied)
    package.failing.add("LLM")
    with pytest.raises(ServerError, match="vLLM on this machine: failed") as raised:
        engine_of(world).sync(world.student, 0)
    assert raised.value.exit_code == 2 and len(str(raised.value).splitlines()) == 1


def test_a_transfer_that_fails_later_has_exit_code_75(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    package.failing.add("collective_rpc")
    with pytest.raises(ServerUnavailableError, match="run the same command again to resume") as raised:
        engine.sync(world.student, 1)
    assert raised.value.exit_code == 75


def test_an_invalid_text_is_requested_again_and_then_an_error(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    engine.generate(requests(), Sampling())
    package.change = lambda choice: choice["token_ids"].append(10**6)
    with pytest.raises(ServerUnavailableError, match="invalid reply"):
        engine.generate(requests(), Sampling())


def test_a_signal_that_also_ended_vllm_interrupts_the_run(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    package.failing.add("generate")
    with signals.handled(), pytest.raises(Interrupted):
        signals._flag.number = 15
        engine.generate(requests(), Sampling())


class Child:
    """A child process; `is_killed` is set when it is killed."""

    def __init__(self) -> None:
        self.is_killed = threading.Event()

    def kill(self) -> None:
        self.is_killed.set()

    def join(self) -> None:
        """Return at once."""


def hangs(engine: VllmEngine, package: FakePackage, child: Child) -> None:
    """Let the next call of `generate` hang until the child process is killed."""
    engine._backend._calls._children = {child}
    engine._backend._calls._timeout_s = 0.1
    package.act = lambda: child.is_killed.wait(30)


def test_vllm_that_hangs_is_killed_and_started_again(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    expected = engine.generate(requests(), GREEDY)
    child = Child()
    hangs(engine, package, child)

    def note(line: str) -> None:
        world.said.append(line)
        engine._backend._calls._timeout_s = 60.0

    engine._tools = replace(engine._tools, note=note)
    assert engine.generate(requests(), GREEDY) == expected
    assert child.is_killed.is_set() and len(package.started) == 2
    assert "no result within 0.1 s); raise engine.timeout_s" in world.said[0]


def test_vllm_that_hangs_several_times_ends_the_run_with_exit_code_75(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    engine.generate(requests(), GREEDY)
    hangs(engine, package, Child())
    package.act = lambda: threading.Event().wait(5)
    with pytest.raises(ServerUnavailableError, match="no result within") as raised:
        engine.generate(requests(), GREEDY)
    assert raised.value.exit_code == 75 and len(str(raised.value).splitlines()) == 1


def test_a_signal_interrupts_a_call_that_hangs(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    is_over = threading.Event()

    def act() -> None:
        signals._flag.number = 15
        is_over.wait(30)

    package.act = act
    with signals.handled(), pytest.raises(Interrupted):
        engine.generate(requests(), Sampling())
    is_over.set()


def test_bans_of_n_grams(tied, package) -> None:
    world, sampling = World(tied), Sampling(no_repeat_ngram=6)
    engine = engine_of(world)
    engine.sync(world.student, 0)
    assert len(engine.generate(requests(2), sampling)) == 2
    other = engine_of(world)
    other.sync(world.student, 0)
    package.started[-1].script.bans = False
    with pytest.raises(ServerError, match="does not ban repeated n-grams"):
        other.generate(requests(2), sampling)


def test_what_is_checked_before_models_are_loaded(package, monkeypatch) -> None:
    said: list[str] = []
    assert ColocatedVllm(ColocatedConfig(positions=64), 60.0).check(64, said.append) == 64 and said == []
    with pytest.raises(ConfigError, match=r"engine\.colocated\.positions = 64: must be at least"):
        ColocatedVllm(ColocatedConfig(positions=64), 60.0).check(65, said.append)
    monkeypatch.setattr(signals, "num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="needs a run with one process"):
        ColocatedVllm(ColocatedConfig(), 60.0).check(1, said.append)
    monkeypatch.setattr(signals, "num_processes", lambda: 1)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.31.0")
    with pytest.raises(ServerError, match=r"must be 0\.32 or later"):
        ColocatedVllm(ColocatedConfig(), 60.0).check(1, said.append)


def test_a_missing_package_is_an_error_with_its_remedy(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match="the package vllm is not installed; install it"):
        ColocatedVllm(ColocatedConfig(), 60.0).check(1, [].append)
    for name in vllm_colocated._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="the package vllm cannot be imported"):
        import_vllm()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"  # vLLM sends no statistics


@pytest.mark.parametrize("settings", [{"memory_fraction": 1.0}, {"memory_fraction": 0.0}, {"positions": 0}])
def test_invalid_settings_are_rejected(settings) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ColocatedConfig(**settings)


def test_the_random_state_of_this_process_stays(tied, package) -> None:
    world = World(tied)
    engine = engine_of(world)
    before = torch.random.get_rng_state()
    engine.sync(world.student, 0)
    engine.generate(requests(2), Sampling())
    assert torch.equal(torch.random.get_rng_state(), before)
