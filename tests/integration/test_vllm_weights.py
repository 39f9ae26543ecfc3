"""The vLLM engine against a real vLLM server; run with `pytest -m vllm`.

VLLM_ENGINE_URL is the address of the server, and VLLM_ENGINE_MODEL the folder of a Llama model with a tied head. The server has
the folder that `redistill export MODEL --to vllm` makes of it, in float32, under the name "student", and permits adapters.
VLLM_TIED_URL is the address of a server that has the model with its tied head, and the worker extension of redistill.
docs/vllm-engine.md has the commands and a log.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from redistill.cli.main import main
from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ServerUnavailableError
from redistill.generation import vllm_weights
from redistill.generation.vllm_weights import ServedWeights
from redistill.models.lora import merged_copy
from redistill.servers.vllm import VllmServers
from tests.generation.test_vllm import GREEDY, World
from tests.worlds import rows, write_rows

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif("VLLM_ENGINE_URL" not in os.environ or "VLLM_ENGINE_MODEL" not in os.environ, reason="needs a server"),
]


class At:
    """The address of the server."""

    url = os.environ.get("VLLM_ENGINE_URL", "")


class Tied:
    """The address of the server with a tied head and the worker extension."""

    url = os.environ.get("VLLM_TIED_URL", "")


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    """The student with a head of its own."""
    folder, world = tmp_path_factory.mktemp("untied"), World(Path(os.environ["VLLM_ENGINE_MODEL"]))
    merged_copy(world.student, untied=True).save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)
    return folder


def student(untied: Path, kind: str, *, lora: bool = False) -> World:
    return World(untied if kind == "untied" else Path(os.environ["VLLM_ENGINE_MODEL"]), lora)


def asked(world: World, tokens: int = 24) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            prompt_ids=tuple(world.tokenizer.encode(row["instruction"])), max_new_tokens=tokens, seed=1, stream=("response", n)
        )
        for n, row in enumerate(rows(8))
    ]


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_greedy_text_is_that_of_the_student_after_each_of_5_transfers(untied, kind, lora) -> None:
    base = student(untied, kind)
    base.engine(At).sync(base.student, 0)  # the server may have the weights of an earlier test
    world = student(untied, kind, lora=lora)
    engine, equal = world.engine(At), []
    engine.sync(world.student, 0)
    for step in range(1, 6):
        world.update(scale=0.02 if lora else 0.002, seed=step)
        engine.sync(world.student, step)
        served = [each.token_ids for each in engine.generate(asked(world), GREEDY)]
        equal.append(sum(one == other for one, other in zip(served, world.local(asked(world)), strict=True)))
    assert equal == [8] * 5
    assert world.said == []


@pytest.mark.skipif("VLLM_TIED_URL" not in os.environ, reason="needs a server with the worker extension")
def test_the_worker_extension_loads_a_tied_head() -> None:
    world = World(Path(os.environ["VLLM_ENGINE_MODEL"]))
    engine, equal = world.engine(Tied, transfer="extension"), []
    for step in range(6):
        engine.sync(world.student, step)
        served = [each.token_ids for each in engine.generate(asked(world), GREEDY)]
        equal.append(sum(one == other for one, other in zip(served, world.local(asked(world)), strict=True)))
        world.update(scale=0.002, seed=step)
    assert equal == [8] * 6
    assert world.said == []


def test_an_old_head_is_detected_10_of_10(untied, monkeypatch) -> None:
    for seed in range(10):
        world = student(untied, "untied")
        engine, head = world.engine(At), world.student.lm_head.weight.detach().clone()
        engine.sync(world.student, 0)
        world.update(scale=0.002, seed=seed)

        def old(model: torch.nn.Module, *, untied: bool, head: torch.Tensor = head) -> torch.nn.Module:
            made = merged_copy(model, untied=untied)
            made.lm_head.weight = torch.nn.Parameter(head)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(vllm_weights, "merged_copy", old)
            with pytest.raises(ServerUnavailableError, match="log-probabilities of probe texts differ"):
                engine.sync(world.student, 1)


def test_an_old_prefix_cache_is_detected_10_of_10(untied, monkeypatch) -> None:
    post = VllmServers._post

    def without_reset(self, client, path, body, remedy):
        if path != "/reset_prefix_cache":
            post(self, client, path, body, remedy)

    for seed in range(10):
        world = student(untied, "untied")
        engine = world.engine(At)
        engine.sync(world.student, 0)
        world.update(scale=0.002, seed=seed)
        with monkeypatch.context() as patch:
            patch.setattr(VllmServers, "_post", without_reset)
            with pytest.raises(ServerUnavailableError, match="log-probabilities of probe texts differ"):
                engine.sync(world.student, 1)


def ban_of_transformers(world: World, many: list[GenerationRequest], tokens: int) -> list[tuple[int, ...]]:
    """Greedy text with a ban of repeated 6-grams, generated by transformers."""
    found = []
    for request in many:
        prompt = torch.tensor([request.prompt_ids])
        made = world.student.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=tokens,
            no_repeat_ngram_size=6,
            eos_token_id=list(world.end_ids),
        )
        found.append(tuple(made[0, prompt.shape[1] :].tolist()))
    return found


def test_the_6_gram_ban_is_that_of_transformers(untied) -> None:
    world = student(untied, "tied")
    engine = world.engine(At)
    engine.sync(world.student, 0)
    many = asked(world, tokens=64)
    served = [each.token_ids for each in engine.generate(many, Sampling(temperature=0.0, no_repeat_ngram=6))]
    free = [each.token_ids for each in engine.generate(many, GREEDY)]
    assert served == ban_of_transformers(world, many, tokens=64)
    assert served != free  # the ban changes some of them


def test_seeds_are_reproducible_and_log_probabilities_are_raw(untied) -> None:
    world = student(untied, "tied")
    engine = world.engine(At)
    engine.sync(world.student, 0)
    first = engine.generate(asked(world), Sampling(temperature=0.7))
    assert [each.token_ids for each in engine.generate(asked(world), Sampling(temperature=0.7))] == [
        each.token_ids for each in first
    ]
    for found, request in zip(first, asked(world), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *found.token_ids]])
        with torch.no_grad():
            logp_TV = world.student(input_ids=ids).logits[0].log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        own = logp_TV.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found.logprobs), own, atol=5e-4, rtol=0)


def test_scores_of_the_engine_are_those_of_the_local_engine_within_two_standard_errors(tmp_path: Path) -> None:
    model = os.environ["VLLM_ENGINE_MODEL"]
    data = write_rows(tmp_path / "test.jsonl", rows(100))
    command = ["evaluate", model, "--data", f"toy={data}", "--seeds", "10", "--response-tokens", "24", "--prompt-tokens", "80"]
    engine = f"{{kind: vllm, url: '{At.url}', model: student}}"
    assert main([*command, "--out", str(tmp_path / "local")]) == 0
    assert main([*command, "--out", str(tmp_path / "served"), "--engine", engine]) == 0
    local, served = (rouge_of(tmp_path / out) for out in ("local", "served"))
    gaps = torch.tensor(served) - torch.tensor(local)
    assert len(gaps) == 100
    assert abs(float(gaps.mean())) <= 2 * float(gaps.std()) / 10


def rouge_of(folder: Path) -> list[float]:
    """ROUGE-L of each answer."""
    (answers,) = (folder / "responses").glob("*.jsonl")
    return [json.loads(line)["rouge_l"] for line in answers.read_text().splitlines()]


def test_a_threshold_of_float32_is_small(untied) -> None:
    world = student(untied, "tied")
    engine = world.engine(At)
    engine.sync(world.student, 0)
    weights: ServedWeights = engine._weights
    assert weights._threshold.limit == pytest.approx(1e-3)
