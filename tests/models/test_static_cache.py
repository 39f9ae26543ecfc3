"""A KV cache of fixed size gives the same text as a growing one, compiled or not, and keeps its shape."""

import pytest
import torch

from redistill.config.capabilities import sharding_fault
from redistill.config.sections import StudentConfig
from redistill.contracts import GenerationRequest, Sampling
from redistill.generation.generate import generate
from redistill.generation.local import LocalEngine, LocalEngineConfig
from redistill.generation.prefix import PrefixMemory
from redistill.models.caches import CachedBody
from redistill.models.static_cache import StaticBodies, StaticBody
from redistill.processes.memory import Halving
from redistill.training.schedule import TrainingConfig

FAMILIES = ["gpt2", "opt", "llama", "qwen2"]


def requests(count, budget=12, first=3):
    """Prompts and budgets of different lengths, so that rows end one after another and are removed."""
    return [
        GenerationRequest(
            prompt_ids=tuple(range(first, first + 3 + 2 * i)), max_new_tokens=budget + 5 * i, seed=3, stream=("r", i)
        )
        for i in range(count)
    ]


def texts(model, wanted, batch_size=4, end_ids=(2,), **options):
    return generate(model, wanted, Sampling(), end_ids=end_ids, pad_id=0, batch_size=batch_size, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_a_growing_cache_in_batches_of_all_shapes(tiny, family):
    model, static = tiny(family), StaticBodies("static")
    for wanted in (requests(6), requests(3, first=9), requests(1), requests(5, budget=4)):
        assert texts(model, wanted, static=static) == texts(model, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_prefixes_are_those_of_a_growing_cache(tiny, family):
    model, static = tiny(family), StaticBodies("static")
    memories = PrefixMemory(), PrefixMemory()
    for _ in range(2):  # the second time, all prompts are known
        found = texts(model, requests(6), memory=memories[0], static=static)
        assert found == texts(model, requests(6), memory=memories[1])
    for request, text in zip(requests(6), found, strict=True):
        whole = request.prompt_ids + text.token_ids
        (tokens, ours), (_, theirs) = (memory.recall(whole) for memory in memories)
        assert tokens == len(whole) - 1
        torch.testing.assert_close(ours.kv_LXHTD, theirs.kv_LXHTD, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.hidden_TD, theirs.hidden_TD, rtol=1e-4, atol=1e-5)


def test_the_cache_is_allocated_once_for_batches_that_fit(tiny):
    model, static = tiny("llama"), StaticBodies("static")
    texts(model, requests(4), static=static)
    keys = static.of(model).cache.layers[0].keys
    texts(model, requests(3, first=9), static=static)
    assert static.of(model).cache.layers[0].keys is keys and keys.shape[0] == 4
    texts(model, requests(5), batch_size=5, static=static)
    assert static.of(model).cache.layers[0].keys.shape[0] == 8


def columns(reader, rows, num_columns):
    """The hidden states that a reader gives column by column, with a row removed in between."""
    ids_LT = torch.arange(3, 3 + rows * num_columns).view(rows, num_columns)
    mask_LT, position_LT = torch.ones_like(ids_LT), torch.arange(num_columns).expand(rows, -1)
    reader.start(rows, num_columns)
    found = [reader.read(ids_LT[:, :3], mask_LT[:, :3], position_LT[:, :3])[:, -1]]
    kept = torch.arange(1, rows)
    for column in range(3, num_columns):
        if column == 5:
            reader.select(kept)
            ids_LT, mask_LT, position_LT = ids_LT[kept], mask_LT[kept], position_LT[kept]
        part = slice(column, column + 1)
        found.append(reader.read(ids_LT[:, part], mask_LT[:, : column + 1], position_LT[:, part])[:, -1])
    return torch.cat(found)


@torch.no_grad()
def test_one_graph_serves_all_tokens_and_batches(tiny, monkeypatch):
    graphs, compile_ = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda call, **settings: compile_(call, backend=backend, dynamic=False))
    model = tiny("llama").eval()
    reader = StaticBody(model, compiled=True)
    for rows, num_columns in ((3, 8), (4, 7), (3, 9)):
        torch.testing.assert_close(columns(reader, rows, num_columns), columns(CachedBody(model), rows, num_columns))
    assert len(graphs) == 1


@torch.no_grad()
def test_decoding_that_cannot_be_compiled_runs_uncompiled_with_one_warning(tiny, monkeypatch, recwarn):
    def refuse(graph, inputs):
        raise RuntimeError("no compiler here")

    model, compile_ = tiny("llama").eval(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **settings: compile_(call, backend=refuse))
    reader = StaticBody(model, compiled=True)
    for _ in range(2):
        torch.testing.assert_close(columns(reader, 3, 8), columns(CachedBody(model), 3, 8))
    messages = [str(each.message) for each in recwarn if str(each.message).startswith("engine.decoder: ")]
    assert len(messages) == 1 and "cannot be compiled, and runs uncompiled: " in messages[0]


@pytest.mark.parametrize(
    ("family", "attention", "kind", "expected"),
    [
        ("llama", "sdpa", "static", []),
        ("llama", "sdpa", "compiled", ["on a CPU, nothing is compiled"]),
        ("llama", "eager", "static", ["needs the attention implementation sdpa, not eager"]),
        ("gemma2", "eager", "static", ["the gemma2 family has layers without full attention"]),
    ],
)
def test_the_engine_prints_once_what_it_cannot_do(tiny, family, attention, kind, expected):
    model, notes = tiny(family), []
    model.set_attn_implementation(attention)
    options = {"vocabulary": None, "end_ids": (2,), "pad_id": 0, "batch_size": Halving("batch_size", 4)}
    engine = LocalEngine(model, decoder=kind, note=notes.append, **options)
    found = [engine.generate(requests(3), Sampling()) for _ in range(2)]
    assert found == [texts(model, requests(3))] * 2
    assert [note.partition(": ")[2][: len(each)] for note, each in zip(notes, expected, strict=True)] == expected


def test_a_sharded_student_cannot_have_compiled_decoding():
    fault = sharding_fault(StudentConfig(model="gpt2"), LocalEngineConfig(decoder="compiled"), TrainingConfig())
    assert fault == "cannot run with engine.decoder = 'compiled'; set engine.decoder to static, or remove it"
    assert sharding_fault(StudentConfig(model="gpt2"), LocalEngineConfig(decoder="static"), TrainingConfig()) is None
