"""The local engine: it retries with a smaller batch size, remembers prefixes within a draw, and samples from mixtures."""

from dataclasses import replace

import pytest
import torch

from redistill.contracts import EngineCapabilities, EngineTools, Generation, GenerationRequest, Sampling
from redistill.errors import TrainingError
from redistill.generation import local, prefix
from redistill.generation.generate import generate
from redistill.generation.local import LOCAL, LocalEngine, LocalEngineConfig, MeteredEngine
from redistill.models.families import body_module
from redistill.processes.memory import Halving

END, VOCABULARY = 2, 40
SAMPLING = Sampling()


def requests(count=8, budget=10):
    return [
        GenerationRequest(prompt_ids=tuple(range(3, 5 + i)), max_new_tokens=budget, seed=7, stream=("response", 1, i))
        for i in range(count)
    ]


def engine_of(model, batch_size=16, **options):
    sizes = batch_size if isinstance(batch_size, Halving) else Halving("training.generation_batch_size", batch_size)
    return LocalEngine(model, vocabulary=VOCABULARY, end_ids=[END], pad_id=0, batch_size=sizes, **options)


def plainly(model, wanted, sampling=SAMPLING, **options):
    return generate(model, wanted, sampling, end_ids=[END], pad_id=0, batch_size=16, vocabulary=VOCABULARY, **options)


def read_by(model):
    """A list to which the number of rows of every forward pass is appended."""
    read = []
    body_module(model).register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return read


def test_its_text_is_that_of_the_sampler(tiny):
    model, wanted = tiny("llama"), requests()
    assert engine_of(model).generate(wanted, SAMPLING) == plainly(model, wanted)
    warm = Sampling(temperature=0.7, top_k=9, no_repeat_ngram=2)
    assert engine_of(model).generate(wanted, warm) == plainly(model, wanted, warm)


def test_it_declares_its_capabilities(tiny):
    engine = engine_of(tiny("llama"))
    assert engine.capabilities == LOCAL == LocalEngineConfig.capabilities
    assert LOCAL.mixture and LOCAL.no_repeat_ngram and LOCAL.prefix_memory and LOCAL.deterministic and LOCAL.samples_student
    assert not LOCAL.logprobs and all(text.logprobs is None for text in engine.generate(requests(), SAMPLING))


def test_its_config_builds_it_from_the_tools(tiny):
    student, teacher, entered = tiny("llama"), tiny("gpt2"), []

    def autocast():
        entered.append(1)
        return torch.autocast("cpu", enabled=False)

    tools = EngineTools(
        student=student,
        teacher=teacher,
        tokenizer=None,
        vocabulary=VOCABULARY,
        end_ids=(END,),
        pad_id=0,
        batch_size=Halving("size", 16),
        autocast=autocast,
    )
    mixed = replace(SAMPLING, teacher_share=0.5)
    found = LocalEngineConfig().build(tools).generate(requests(), mixed)
    assert found == plainly(student, requests(), mixed, teacher=teacher) and entered == [1]


def test_where_memory_runs_out_it_retries_with_a_smaller_batch_size_and_keeps_it(tiny, monkeypatch):
    model, sizes, tried = tiny("llama"), Halving("training.generation_batch_size", 16), []

    def tight(*arguments, batch_size, **options):
        tried.append(batch_size)
        if batch_size > 4:
            raise MemoryError
        return generate(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(local, "generate", tight)
    engine, wanted = engine_of(model, sizes), requests()
    assert engine.generate(wanted, SAMPLING) == plainly(model, wanted) and tried == [16, 8, 4]
    assert engine.generate(wanted, SAMPLING) == plainly(model, wanted) and tried == [16, 8, 4, 4]
    assert sizes.size == 4 and len(sizes.take_changes()) == 2


def test_where_one_sequence_does_not_fit_the_error_names_the_setting(tiny, monkeypatch):
    def never(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(local, "generate", never)
    with pytest.raises(TrainingError, match=r"training\.generation_batch_size = 1: out of memory"):
        engine_of(tiny("llama"), 2).generate(requests(), SAMPLING)


def test_sync_is_a_no_op_since_the_weights_are_the_students_own(tiny):
    model, other = tiny("llama"), tiny("llama")
    engine, wanted = engine_of(model), requests()
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(3.0)
    before = engine.generate(wanted, SAMPLING)
    engine.sync(other, 3)
    assert engine.generate(wanted, SAMPLING) == before
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3.0)
    assert engine.generate(wanted, SAMPLING) == plainly(other, wanted) != before, "an update is seen without sync"


def test_a_mixture_is_sampled_only_if_teacher_share_is_above_0(tiny):
    student, teacher, wanted = tiny("llama"), tiny("gpt2"), requests()
    engine, read = engine_of(student, teacher=teacher), read_by(teacher)
    assert engine.generate(wanted, SAMPLING) == plainly(student, wanted) and read == []
    half = replace(SAMPLING, teacher_share=0.5)
    mixed = engine.generate(wanted, half)
    assert mixed == plainly(student, wanted, half, teacher=teacher) != plainly(student, wanted) and read
    assert engine.generate(wanted, replace(SAMPLING, teacher_share=1.0)) == plainly(teacher, wanted)


def test_inside_remembering_what_was_generated_is_not_read_again(tiny):
    model, wanted = tiny("llama"), requests()
    engine = engine_of(model)
    drafts = engine.generate(wanted, SAMPLING)
    tails = [
        replace(request, prompt_ids=request.prompt_ids + draft.token_ids, stream=("tail", 1, i))
        for i, (request, draft) in enumerate(zip(wanted, drafts, strict=True))
    ]
    read = read_by(model)
    expected = engine.generate(tails, SAMPLING)
    whole = read[0]
    with engine.remembering():
        memory = engine.memory
        assert memory is not None and engine.generate(wanted, SAMPLING) == drafts
        read.clear()
        assert engine.generate(tails, SAMPLING) == expected
        assert read[0] == (len(wanted), 1) and whole[1] > 1, "one token of each has not been read"
    assert engine.memory is None
    with engine.remembering():
        assert engine.memory is not memory, "the weights may have changed meanwhile"


def test_a_memory_that_is_too_small_is_reported_once(tiny, monkeypatch):
    monkeypatch.setattr(prefix, "MEMORY_BYTES", 0)
    lines = []
    engine = engine_of(tiny("llama"), note=lines.append)
    for _ in range(2):
        with engine.remembering():
            engine.generate(requests(), SAMPLING)
    assert len(lines) == 1 and "tokens of the student were not stored in one update" in lines[0]


def test_the_memory_is_dropped_if_a_draw_fails(tiny):
    engine = engine_of(tiny("llama"))
    with pytest.raises(KeyError), engine.remembering():
        raise KeyError
    assert engine.memory is None


def test_a_retry_inside_remembering_gives_the_same_text(tiny, monkeypatch):
    model, wanted = tiny("llama"), requests()

    def fails_late(*arguments, batch_size, **options):
        generations = generate(*arguments, batch_size=batch_size, **options)
        if batch_size > 4:
            raise MemoryError  # after the prefix memory has been filled
        return generations

    monkeypatch.setattr(local, "generate", fails_late)
    engine = engine_of(model)
    with engine.remembering():
        assert engine.generate(wanted, SAMPLING) == plainly(model, wanted)


# --- MeteredEngine ------------------------------------------------------------------------------------------------------


class Scripted:
    """An engine with fixed text that records its calls."""

    capabilities = EngineCapabilities(deterministic=True, samples_student=False)

    def __init__(self):
        self.synchronised, self.asked = [], []

    def sync(self, student, step):
        self.synchronised.append((student, step))

    def generate(self, requests, sampling):
        self.asked.append((requests, sampling))
        return [Generation(token_ids=(5,) * i, finished=False) for i, _ in enumerate(requests)]


def test_a_metered_engine_counts_the_tokens_of_each_call():
    counted, inner = [], Scripted()
    engine = MeteredEngine(inner, counted.append)
    assert [len(text.token_ids) for text in engine.generate(requests(4), SAMPLING)] == [0, 1, 2, 3]
    engine.generate(requests(2), SAMPLING)
    engine.generate([], SAMPLING)
    assert counted == [6, 1, 0]
    assert [sampling for _, sampling in inner.asked] == [SAMPLING] * 3


def test_a_metered_engine_delegates_everything_else():
    inner = Scripted()
    engine = MeteredEngine(inner, [].append)
    assert engine.engine is inner and engine.capabilities is inner.capabilities
    engine.sync(inner, 4)
    assert inner.synchronised == [(inner, 4)]


def test_a_call_that_fails_counts_nothing(tiny, monkeypatch):
    counted = []

    def never(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(local, "generate", never)
    with pytest.raises(TrainingError):
        MeteredEngine(engine_of(tiny("llama"), 4), counted.append).generate(requests(), SAMPLING)
    assert counted == []
