"""Drafts in chunks: the same revised texts as with whole drafts, with fewer generated tokens."""

from dataclasses import replace

import pytest

from redistill.contracts import EngineCapabilities, GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.generation.local import LOCAL, MeteredEngine
from redistill.policies import Adaptive, Mixed, Revised, StudentGenerated
from redistill.policies.chunked import ChunkedEngine
from redistill.policies.revised import USUAL_CHUNK, chunk_notes
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
    texts, whole, errors = revised(replace(node, chunk_tokens="all"))
    assert errors, "the threshold finds errors"
    for chunk_tokens in (1, 3, 100, None):
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


def test_the_first_error_is_searched_in_chunks_by_default() -> None:
    assert Revised(**FIRST).chunk_size(LOCAL) == USUAL_CHUNK == 16
    source = Revised(**FIRST).bind(make_fixture().tools)
    assert isinstance(source._source._tools.engine, ChunkedEngine)


@pytest.mark.parametrize(
    ("settings", "engine", "need"),
    [
        ({"mode": "append"}, LOCAL, "mode replace"),
        ({"source": Mixed(source=StudentGenerated())}, LOCAL, "source student_generated"),
        ({}, EngineCapabilities(), "an engine that stores the states of prefixes"),
        ({"chunk_tokens": 4}, EngineCapabilities(), "an engine that stores the states of prefixes"),
    ],
)
def test_complete_drafts_that_are_not_needed_are_reported(settings: dict[str, object], engine, need: str) -> None:
    node = Revised(**FIRST, **settings)
    assert node.chunk_size(engine) is None
    (note,) = chunk_notes(Adaptive(source=node), engine)
    assert need in note


@pytest.mark.parametrize(
    "node", [Revised(), Revised(**FIRST), Revised(**FIRST, chunk_tokens="all"), StudentGenerated()], ids=repr
)
def test_other_policies_have_no_note(node: object) -> None:
    assert list(chunk_notes(node, LOCAL)) == []


@pytest.mark.parametrize(("chunk_tokens", "is_logged"), [("all", True), (None, False), (2, False)])
def test_unchanged_tails_are_logged_for_complete_drafts(chunk_tokens: object, is_logged: bool) -> None:
    tools = make_fixture().tools
    source = Revised(**FIRST, chunk_tokens=chunk_tokens).bind(tools)
    source.sequences(0, tools.gold.items(0))
    assert source.metrics()["revisions"] > 0 and ("unchanged_tails" in source.metrics()) == is_logged


def test_an_engine_without_a_prefix_memory_generates_complete_drafts_whose_tails_are_compared() -> None:
    tools = make_fixture().tools
    source = Revised(**FIRST, chunk_tokens=2).bind(replace(tools, engine=_Forgetful(tools.engine)))
    source.sequences(0, tools.gold.items(0))
    assert source.metrics()["revisions"] > 0 and "unchanged_tails" in source.metrics()


class _Forgetful(MeteredEngine):
    """An engine that does not store the states of prefixes."""

    capabilities = EngineCapabilities()

    def __init__(self, engine) -> None:
        super().__init__(engine, lambda count: None)
