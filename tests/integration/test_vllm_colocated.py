"""vLLM on the machine of the process that trains, with the real package; run with `pytest -m vllm`.

The tests need an environment with redistill and vllm.  VLLM_ENGINE_MODEL is the folder of a Llama model with a tied head.
docs/vllm-engine.md has the command and a log.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from redistill.contracts import Sampling
from redistill.generation.vllm import VllmEngineConfig
from redistill.generation.vllm_colocated import ColocatedConfig
from tests.generation.test_vllm import GREEDY, World
from tests.integration.test_vllm_weights import asked, ban_of_transformers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or "VLLM_ENGINE_MODEL" not in os.environ, reason="needs the package vllm"
    ),
]


@pytest.fixture(scope="module")
def world():
    """A student with a tied head, and its engine."""
    made = World(Path(os.environ["VLLM_ENGINE_MODEL"]))
    settings = ColocatedConfig(dtype="float32", positions=512)
    return made, VllmEngineConfig(mode="colocated", colocated=settings).build(made.tools())


def test_greedy_text_is_that_of_the_student_after_each_of_5_transfers(world) -> None:
    student, engine = world
    equal = []
    for step in range(6):
        engine.sync(student.student, step)
        texts = [each.token_ids for each in engine.generate(asked(student), GREEDY)]
        equal.append(sum(one == other for one, other in zip(texts, student.local(asked(student)), strict=True)))
        student.update(scale=0.002, seed=step)
    assert equal == [8] * 6
    assert student.said == []


def test_seeds_are_reproducible_and_the_ban_is_that_of_transformers(world) -> None:
    student, engine = world
    engine.sync(student.student, 6)
    first, second = (engine.generate(asked(student), Sampling(temperature=0.7)) for _ in range(2))
    assert [each.token_ids for each in first] == [each.token_ids for each in second]
    many = asked(student, tokens=48)
    found = [each.token_ids for each in engine.generate(many, Sampling(temperature=0.0, no_repeat_ngram=6))]
    assert found == ban_of_transformers(student, many, tokens=48)


def test_vllm_that_was_killed_is_started_again(world) -> None:
    student, engine = world
    expected = engine.generate(asked(student), GREEDY)
    engine._backend._llm.llm_engine.engine_core.shutdown()
    assert engine.generate(asked(student), GREEDY) == expected
    assert len(student.said) >= 1
