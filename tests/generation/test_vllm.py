"""The vLLM engine against a fake server: transfer of weights, comparison with the student, failures."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.contracts import EngineTools, GenerationRequest, Sampling
from redistill.errors import ConfigError, RedistillError, ServerError, ServerUnavailableError
from redistill.generation import vllm_weights
from redistill.generation.generate import generate
from redistill.generation.vllm import VllmEngine, VllmEngineConfig
from redistill.generation.vllm_colocated import ColocatedConfig
from redistill.models.load import ModelConfig, end_token_ids, load_model
from redistill.models.lora import LoraConfig, add_lora
from redistill.processes import signals
from redistill.processes.memory import Halving
from redistill.servers.vllm import EXTENSION
from tests.servers.fake import Answer, Received, Server, serving
from tests.servers.fake_vllm import VllmScript
from tests.worlds import LLAMA, write_model

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", params=["tied", "untied"])
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    write_model(path, LLAMA, 2, tie_word_embeddings=request.param == "tied")
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write_model(path, LLAMA, 2)
    return path


class World:
    """A student, and the tools of its engine; `said` has the lines that are printed."""

    def __init__(self, folder: Path, lora: bool = False) -> None:
        self.student, self.tokenizer = load_model(ModelConfig(model=str(folder)))
        self.end_ids = end_token_ids(self.student, self.tokenizer)
        if lora:
            self.student = add_lora(self.student, LoraConfig(rank=2, dropout=0.0), seed=1)
        self.said = list[str]()
        self.size = len(self.tokenizer)

    def tools(self) -> EngineTools:
        return EngineTools(
            student=self.student,
            teacher=None,
            tokenizer=self.tokenizer,
            vocabulary=self.size,
            end_ids=self.end_ids,
            pad_id=0,
            batch_size=Halving("size", 8),
            autocast=nullcontext,
            note=self.said.append,
        )

    def engine(self, server: Server, **settings: Any) -> VllmEngine:
        settings = {"model": "student", "patience_s": 0.0, **settings}
        return VllmEngineConfig(url=(server.url,), **settings).build(self.tools())

    def update(self, scale: float = 0.05, seed: int = 1) -> None:
        """Change every trained weight, as an update would."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.student.parameters():
                if parameter.requires_grad:
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator))

    def local(self, requests: list[GenerationRequest], sampling: Sampling = GREEDY) -> list[tuple[int, ...]]:
        found = generate(self.student, requests, sampling, end_ids=self.end_ids, pad_id=0, batch_size=8, vocabulary=self.size)
        return [each.token_ids for each in found]


def requests(count: int = 8, length: int = 20, tokens: int = 8) -> list[GenerationRequest]:
    return [
        GenerationRequest(prompt_ids=tuple(range(5 + n, 5 + n + length)), max_new_tokens=tokens, seed=1, stream=("response", n))
        for n in range(count)
    ]


@pytest.mark.parametrize("lora", [False, True])
def test_greedy_text_is_that_of_the_student_after_each_transfer(folder, lora) -> None:
    world = World(folder, lora)
    with serving(VllmScript(folder)) as server:
        engine = world.engine(server)
        for step in range(3):
            engine.sync(world.student, step)
            found = engine.generate(requests(), GREEDY)
            assert [each.token_ids for each in found] == world.local(requests())
            world.update(seed=step)
    assert world.said == []


def test_log_probabilities_are_those_of_the_student_at_any_temperature(tied) -> None:
    world = World(tied)
    with serving(VllmScript(tied)) as server:
        engine = world.engine(server)
        engine.sync(world.student, 0)
        for found, request in zip(engine.generate(requests(), Sampling(temperature=0.5)), requests(), strict=True):
            ids = torch.tensor([[*request.prompt_ids, *found.token_ids]])
            logp_TV = world.student(input_ids=ids).logits[0].log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
            own = logp_TV.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found.logprobs), own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fault", ["keeps_head", "keeps_cache"])
@pytest.mark.parametrize("seed", range(10))
def test_a_stale_head_and_a_stale_prefix_cache_end_the_run_before_the_next_draw(tied, fault, seed) -> None:
    world, script = World(tied), VllmScript(tied)
    with serving(script) as server:
        engine = world.engine(server)
        engine.sync(world.student, 0)
        setattr(script, fault, True)
        world.update(seed=seed)
        with pytest.raises(ServerUnavailableError, match="log-probabilities of probe texts differ by") as raised:
            engine.sync(world.student, 1)
        assert raised.value.exit_code == 75 and "run the same command again" in str(raised.value)


@pytest.mark.parametrize("scale", [0.002, 0.005, 0.01, 0.02])
def test_a_stale_head_is_detected_at_the_first_transfer_as_well(tied, scale) -> None:
    """As in a resumed run, whose weights differ from those with which the server was started."""
    for seed in range(4):
        world = World(tied)
        world.update(scale, seed)
        with serving(VllmScript(tied, keeps_head=True)) as server:
            with pytest.raises(ServerError, match=r"and must differ by at most 0\.001;") as raised:
                world.engine(server).sync(world.student, 1000)
            assert raised.value.exit_code == 2


def test_the_rounding_of_a_server_in_bfloat16_is_accepted_and_a_stale_head_is_not(folder) -> None:
    for seed in range(3):
        world, script = World(folder), VllmScript(folder, dtype="bfloat16")
        with serving(script) as server:
            engine = world.engine(server)
            for step in range(3):
                world.update(seed=10 * seed + step)
                engine.sync(world.student, step)
            script.keeps_head = True
            world.update(seed=seed)
            with pytest.raises(ServerUnavailableError, match="does not have the student's weights"):
                engine.sync(world.student, 4)


@pytest.mark.parametrize(
    ("dtype", "dev_mode", "expected"), [("float32", True, "float32"), ("bfloat16", True, "half"), ("float32", False, None)]
)
def test_the_precision_of_a_server(tied, dtype, dev_mode, expected) -> None:
    with serving(VllmScript(tied, dtype=dtype, dev_mode=dev_mode)) as server:
        assert World(tied).engine(server)._backend.precision() == expected


@pytest.mark.parametrize("lora", [False, True])
def test_the_worker_extension_loads_weights_with_the_head_of_the_student(folder, lora) -> None:
    world = World(folder, lora)
    with serving(VllmScript(folder, extension=EXTENSION)) as server:
        engine = world.engine(server, transfer="extension")
        for step in range(2):
            engine.sync(world.student, step)
            assert [each.token_ids for each in engine.generate(requests(), GREEDY)] == world.local(requests())
            world.update(seed=step)
        called = [each.body["method"] for each in server.received if each.path == "/collective_rpc"]
    assert called == ([] if lora else ["redistill_reload"] * 2)  # adapters need no extension


def test_a_server_without_the_worker_extension_is_rejected(tied) -> None:
    world = World(tied)
    with serving(VllmScript(tied)) as server, pytest.raises(ServerError, match=f"--worker-extension-cls {EXTENSION}") as raised:
        world.engine(server, transfer="extension").sync(world.student, 0)
    assert raised.value.exit_code == 2 and len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("lora", [False, True])
def test_a_restart_from_the_written_folder_is_awaited(folder, lora, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("redistill.generation.vllm_weights._POLL_S", 0.0)
    world, script = World(folder, lora), VllmScript(folder, dev_mode=False)
    written, num_asked = tmp_path / "redistill-student", [0]

    def restarting(received: Received) -> Answer:
        num_asked[0] += 1
        if num_asked[0] == 15:
            script.restart(written)
        return Answer({}, 503) if num_asked[0] in (13, 14) else script(received)

    with serving(restarting) as server:
        engine = world.engine(server, transfer="restart", folder=str(tmp_path), patience_s=30.0)
        engine.sync(world.student, 0)  # the server has these weights already
        assert world.said == []
        num_asked[0] = 0
        world.update()
        engine.sync(world.student, 1)
        assert [each.token_ids for each in engine.generate(requests(), GREEDY)] == world.local(requests())
    assert any(f"for a restart of the servers from {written}" in line for line in world.said)
    assert script.num_loads == 0


def test_a_restart_that_does_not_come_ends_the_run_with_exit_code_75(tied, tmp_path) -> None:
    world = World(tied)
    with serving(VllmScript(tied)) as server:
        engine = world.engine(server, transfer="restart", folder=str(tmp_path))
        engine.sync(world.student, 0)
        world.update()
        with pytest.raises(ServerUnavailableError, match="does not have the student's weights") as raised:
            engine.sync(world.student, 1)
    assert raised.value.exit_code == 75


def test_a_server_with_another_model_is_rejected_at_the_first_transfer(tied, tmp_path) -> None:
    write_model(tmp_path, LLAMA, 7)
    world = World(tied)
    with serving(VllmScript(tmp_path, keeps_head=True)) as server, pytest.raises(ServerError, match="export MODEL --to vllm"):
        world.engine(server).sync(world.student, 0)


def test_a_transfer_is_made_every_k_updates(tied) -> None:
    world, script = World(tied), VllmScript(tied)
    with serving(script) as server:
        engine = world.engine(server, every=3)
        steps = []
        for step in range(7):
            engine.sync(world.student, step)
            steps.append(engine.synced_step)
            engine.generate(requests(2), GREEDY)
            world.update(seed=step)
    assert steps == [0, 0, 0, 3, 3, 3, 6] and script.num_loads == 3


def test_a_server_that_was_restarted_gets_the_weights_again(folder) -> None:
    for lora in (False, True):
        world, script = World(folder, lora), VllmScript(folder)
        with serving(script) as server:
            engine = world.engine(server, every=2)
            world.update()
            engine.sync(world.student, 0)
            expected = engine.generate(requests(), Sampling())
            script.restart()
            engine.sync(world.student, 1)
            assert engine.generate(requests(), Sampling()) == expected
        assert len(world.said) == 1 + lora and "loads the weights again" in world.said[-1]  # the server has lost its adapters


def test_a_restart_while_texts_are_requested_is_detected(tied) -> None:
    world, script = World(tied), VllmScript(tied)
    failures = [0]

    def restarts(received: Received) -> Answer:
        if received.path == "/v1/completions" and failures[0] == 1:
            failures[0] = 2
            script.restart()
            return Answer({}, 503)
        return script(received)

    with serving(restarts) as server:
        engine = world.engine(server, patience_s=30.0, concurrent_requests=1)
        world.update()
        engine.sync(world.student, 0)
        expected = engine.generate(requests(), Sampling())
        failures[0] = 1
        assert engine.generate(requests(), Sampling()) == expected
    assert failures == [2] and any("loads the weights again" in line for line in world.said)


def test_a_restart_between_two_calls_is_detected_without_a_failed_request(folder) -> None:
    for lora in (False, True):
        world, script = World(folder, lora), VllmScript(folder)
        with serving(script) as server:
            engine = world.engine(server)
            world.update()
            engine.sync(world.student, 0)
            expected = engine.generate(requests(), GREEDY)
            script.restart()
            assert engine.generate(requests(), GREEDY) == expected
        assert len(world.said) == 1 + lora and "loads the weights again" in world.said[-1]  # the server has lost its adapters


def test_a_process_requests_texts_again_after_another_one_has_loaded_the_weights_again(tied, monkeypatch) -> None:
    world, script = World(tied), VllmScript(tied)
    num_texts = [-1]

    def restarts(received: Received) -> Answer:
        if num_texts[0] >= 0 and "stop_token_ids" in (received.body or {}):
            num_texts[0] += 1
            if num_texts[0] == 3:
                script.restart()
                return Answer({}, 503)
            if num_texts[0] == 6:  # the main process detects the restart, while this one has texts of other weights
                assert main._weights.restore()
        return script(received)

    with serving(restarts) as server:
        main, other = (world.engine(server, patience_s=30.0, concurrent_requests=1) for _ in range(2))
        world.update()
        main.sync(world.student, 0)
        with monkeypatch.context() as patched:  # `other` is the engine of a process that does not transfer the weights
            patched.setattr(vllm_weights, "_is_main", lambda: False)
            weights = main._weights
            patched.setattr(signals, "gather", lambda values: [(weights._loaded, weights.model, weights._threshold)])
            other.sync(world.student, 0)
        assert other._weights._threshold.limit == main._weights._threshold.limit == pytest.approx(0.001)
        expected = main.generate(requests(), Sampling())
        monkeypatch.setattr(signals, "num_processes", lambda: 2)
        num_texts[0] = 0
        assert other.generate(requests(), Sampling()) == expected
    assert num_texts[0] == 3 + 6 + 8, "after the failed request, the others and then all texts were requested again"


def _changed(fault: str, choice: dict[str, Any]) -> None:
    if fault == "short":
        choice["token_ids"] = choice["token_ids"][:1]
    elif fault == "nan":
        choice["logprobs"]["token_logprobs"][0] = "NaN"
    elif fault == "no tokens":
        choice["token_ids"] = []


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("short", "has no end token"),
        ("nan", "log-probability is missing or not a number"),
        ("no tokens", "0 token ids"),
        ("503", "status 503"),
        ("another model", "status 404"),
        ("closed", "no valid reply"),
    ],
)
def test_each_failure_is_one_line_with_exit_code_75(tied, fault, text) -> None:
    world, is_on = World(tied), [False]

    def change(received: Received, reply: Any) -> Any:
        if is_on[0] and "stop_token_ids" in (received.body or {}):
            _changed(fault, reply["choices"][0])
        return reply

    script = VllmScript(tied, change=change)

    def script_with_fault(received: Received) -> Answer:
        if is_on[0] and fault in ("503", "closed"):
            return Answer({}, 503) if fault == "503" else Answer(raw=[])
        if is_on[0] and fault == "another model":
            script.name = "other"
        return script(received)

    with serving(script_with_fault) as server:
        engine = world.engine(server)
        engine.sync(world.student, 0)
        engine.generate(requests(), Sampling())
        is_on[0] = True
        with pytest.raises(ServerUnavailableError, match=text) as raised:
            engine.generate(requests(), Sampling())
    assert raised.value.exit_code == 75 and len(str(raised.value).splitlines()) == 1


def test_a_hundred_requests_at_once_are_answered_in_order(tied) -> None:
    world = World(tied)
    with serving(VllmScript(tied)) as server:
        engine = world.engine(server, concurrent_requests=100)
        engine.sync(world.student, 0)
        many = requests(100, length=3, tokens=2)
        found = engine.generate(many, GREEDY)
        assert [each.token_ids for each in found] == world.local(many)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"dev_mode": False}, "start the server with VLLM_SERVER_DEV_MODE=1"),
        ({"version": "0.31.1"}, "must be 0.32 or later"),
        ({"version": "llama"}, "has no version of vLLM"),
        ({"name": "other"}, "the model is not served"),
    ],
)
def test_a_server_that_cannot_be_used_is_rejected(tied, settings, text) -> None:
    world = World(tied)
    with serving(VllmScript(tied, **settings)) as server, pytest.raises(ServerError, match=text) as raised:
        world.engine(server).sync(world.student, 0)
    assert raised.value.exit_code == 2


def test_a_wrong_key_is_rejected_without_showing_it(tied, monkeypatch) -> None:
    monkeypatch.setenv("ENGINE_API_KEY", "q7w8e9r0t1y2u3i4")
    world = World(tied)
    with serving(VllmScript(tied, key="another-key-1234")) as server:
        engine = world.engine(server, api_key_env="ENGINE_API_KEY")
        with pytest.raises(ServerError, match="the server rejected the API key") as raised:
            engine.sync(world.student, 0)
    assert raised.value.exit_code == 2 and "q7w8e9r0" not in str(raised.value)


def test_a_replica_with_old_weights_is_named(tied) -> None:
    world, second = World(tied), VllmScript(tied)
    with serving(VllmScript(tied)) as one, serving(second) as two:
        settings = VllmEngineConfig(url=(one.url, two.url), model="student", patience_s=0.0)
        engine = settings.build(world.tools())
        engine.sync(world.student, 0)
        second.keeps_head = True
        world.update()
        with pytest.raises(ServerUnavailableError, match=f"server {two.url.split('/')[2]} does not have the student's weights"):
            engine.sync(world.student, 1)


def test_a_newer_version_is_reported(tied) -> None:
    world = World(tied)
    with serving(VllmScript(tied, version="0.40.1rc2+cpu")) as server:
        world.engine(server).sync(world.student, 0)
    assert len(world.said) == 1 and "runs vLLM 0.40.1rc2+cpu; redistill was tested with 0.32" in world.said[0]


def test_a_ban_of_n_grams_needs_the_plugin(tied) -> None:
    world, sampling = World(tied), Sampling(no_repeat_ngram=6)
    for bans in (True, False):
        with serving(VllmScript(tied, bans=bans)) as server:
            engine = world.engine(server)
            engine.sync(world.student, 0)
            if bans:
                assert len(engine.generate(requests(2), sampling)) == 2
                bodies = [each.body or {} for each in server.received]
                texts = [body for body in bodies if body.get("max_tokens", 0) > 1]  # the others score probe texts
                assert [body["vllm_xargs"] for body in texts[-2:]] == [{"no_repeat_ngram_size": 6}] * 2
            else:
                with pytest.raises(ServerError, match="does not ban repeated n-grams; install redistill"):
                    engine.generate(requests(2), sampling)


def test_mixtures_are_rejected_or_generated_in_this_process(tied) -> None:
    world, sampling = World(tied), Sampling(teacher_share=0.5)
    with serving(VllmScript(tied)) as server:
        engine = world.engine(server)
        engine.sync(world.student, 0)
        with pytest.raises(ConfigError, match=r"cannot sample from mixtures; set engine\.unsupported to local"):
            engine.generate(requests(2), sampling)
        world.engine(server, unsupported="local")
    assert VllmEngineConfig(url=("http://127.0.0.1:1/v1",), model="m", unsupported="local").capabilities.mixture


def test_the_student_is_unchanged_by_a_transfer(folder) -> None:
    world = World(folder)
    before = copy.deepcopy(world.student.state_dict())
    with serving(VllmScript(folder)) as server:
        world.engine(server).sync(world.student, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in world.student.state_dict().items())
    assert (world.student.lm_head.weight is world.student.model.embed_tokens.weight) == world.student.config.tie_word_embeddings


def test_the_kinds_of_errors_of_a_recipe() -> None:
    good = {"url": ("http://127.0.0.1:1/v1",), "model": "m"}
    for changed, text in (
        ({"url": ()}, "url: empty"),
        ({"transfer": "restart"}, "transfer = 'restart': needs a folder"),
        ({"max_staleness": -1}, "max_staleness = -1: must be >= 0"),
        ({"colocated": ColocatedConfig()}, "must be null in the mode server"),
        ({"mode": "colocated"}, r"url = \('http://127.0.0.1:1/v1',\): must not be set in the mode colocated"),
        ({"mode": "colocated", "url": (), "model": "", "concurrent_requests": 8}, "concurrent_requests = 8: must not be set"),
        ({"mode": "colocated", "url": (), "model": "", "patience_s": 1.0}, "patience_s = 1.0: must not be set"),
        ({"mode": "colocated", "url": (), "model": "", "timeout_s": 0.0}, "timeout_s = 0.0: must be > 0"),
        ({"mode": "colocated", "url": (), "model": "", "transfer": "extension"}, "must be 'reload' in the mode colocated"),
        ({"url": ("ftp://x",)}, "must be an http or https URL"),
        ({"every": 0}, "every = 0: must lie in"),
        ({"every": 4, "ahead": 3}, "ahead = 3: must be a multiple or a divisor of every = 4"),
        ({"tolerance": -1.0}, "tolerance = -1.0: must be >= 0"),
        ({"api_key_env": "NAME"}, "must be the name of an environment variable that ends in KEY or TOKEN"),
    ):
        with pytest.raises(RedistillError, match=text):
            VllmEngineConfig(**{**good, **changed})
