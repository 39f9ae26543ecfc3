"""Drafts in chunks: the same revised texts as with whole drafts, with fewer generated tokens."""

from dataclasses import replace

import pytest

from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.generation.local import MeteredEngine
from redistill.policies import Mixed, Revised, StudentGenerated
from tests.policies.fixture import make_fixture

FIRST = {"detection": "first", "threshold_nats": 4.2}


def revised(node: Revised, steps: int = 3) -> tuple[list[tuple[str, tuple[int, ...]]], int, list[tuple[int, int]]]:
    """The sequences of some steps, the number of generated tokens, and the logged errors."""
    fixture, counts = make_fixture(), []
    tools = replace(fixture.tools, engine=MeteredEngine(fixture.tools.engine, counts.append))
    source = node.bind(tools)
    found = [sequence for step in range(steps) for sequence in source.sequences(step, tools.gold.items(step))]
    errors = [(revision.sample, revision.position) for revision in fixture.revisions]
    return [(sequence.origin, sequence.token_ids) for sequence in found], sum(counts), errors


@pytest.mark.parametrize("settings", [{}, {"teacher_token": "argmax"}, {"rounds": 2}, {"threshold_nats": 4.8}])
def test_texts_and_errors_are_those_of_whole_drafts_for_every_size_of_chunk(settings: dict[str, object]) -> None:
    node = Revised(**{**FIRST, **settings})
    texts, whole, errors = revised(node)
    assert errors, "the threshold finds errors"
    for chunk_tokens in (1, 3, 100):
        same, generated, same_errors = revised(replace(node, chunk_tokens=chunk_tokens))
        assert (same, same_errors) == (texts, errors)
        assert generated < whole if chunk_tokens == 1 else generated <= whole


def test_a_text_in_two_parts_has_the_tokens_of_the_whole() -> None:
    engine = make_fixture().engine_alone
    request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=9, seed=1, stream=("response", 0, 0))
    (whole,) = engine.generate([request], Sampling())
    (first,) = engine.generate([replace(request, max_new_tokens=4)], Sampling())
    rest = replace(request, prompt_ids=(5, 6, *first.token_ids), max_new_tokens=5, skipped_tokens=4)
    (second,) = engine.generate([rest], Sampling())
    assert len(whole.token_ids) > 4 and first.token_ids + second.token_ids == whole.token_ids


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_tokens": 4},
        {**FIRST, "chunk_tokens": 0},
        {**FIRST, "chunk_tokens": 4, "mode": "append"},
        {**FIRST, "chunk_tokens": 4, "source": Mixed(source=StudentGenerated())},
    ],
)
def test_chunks_need_the_first_error_of_new_text_alone(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^chunk_tokens = \d: "):
        Revised(**settings)
