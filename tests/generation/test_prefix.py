"""A prefix memory changes what a model reads, and no result."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from redistill.contracts import GenerationRequest, Sampling
from redistill.generation import prefix
from redistill.generation.generate import generate
from redistill.generation.packed import packed_layers
from redistill.generation.prefix import PrefixMemory, PrefixReader
from redistill.models.caches import prefixes_can_be_reused
from redistill.models.families import body, body_module
from redistill.tensors import pad

FAMILIES = ["gpt2", "opt", "llama", "qwen3", "cohere"]
SLIDING = ["gemma2", "gemma3"]


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


def texts(count, longest, seed=0):
    generator = np.random.default_rng(seed)
    return [tuple(generator.integers(3, 40, generator.integers(2, longest + 1)).tolist()) for _ in range(count)]


def revised(drafts, seed=1):
    """Each draft up to some token, followed by other tokens; some drafts unchanged."""
    generator, changed = np.random.default_rng(seed), []
    for number, draft in enumerate(drafts):
        kept = int(generator.integers(1, len(draft) + 1))
        changed.append(draft if number % 3 == 2 else draft[:kept] + tuple(generator.integers(3, 40, 9).tolist()))
    return changed


def whole_rows(texts):
    """ids_BT, mask_BT and the flat positions of all tokens except the last ones."""
    ids_BT, mask_BT = pad(texts, 0)
    places = [b * ids_BT.shape[1] + t for b, text in enumerate(texts) for t in range(len(text) - 1)]
    return ids_BT, mask_BT, torch.tensor(places)


def counted(model):
    """A list to which the number of tokens, including padding, of every forward pass of the body is appended."""
    read = []
    body_module(model).register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return read


# --- reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES + SLIDING)
def test_hidden_states_are_those_of_reading_all_again(tiny, family):
    model = tiny(family).eval()
    reader, memory = PrefixReader(model), PrefixMemory()
    drafts = texts(9, 30)
    for part in (drafts[:5], drafts[5:]):  # states of one batch are reused in another
        reader.rows(*whole_rows(part), memory, remember=True)
    rows = whole_rows([*revised(drafts), *texts(2, 20, seed=4)])
    expected = body(model)(*rows[:2]).flatten(0, 1)[rows[2]]
    torch.testing.assert_close(reader.rows(*rows, memory), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_known_prefixes_are_not_read_again(tiny, family):
    model = tiny(family).eval()
    reader, memory, drafts = PrefixReader(model), PrefixMemory(), texts(6, 30)
    reader.rows(*whole_rows(drafts), memory, remember=True)
    read = counted(model)
    reader.rows(*whole_rows(drafts), memory)
    assert read == []
    longer = [(*draft, 5) for draft in drafts]
    reader.rows(*whole_rows(longer), memory)
    assert read == [len(drafts)], "one token of each: the last ones of the drafts had not been read"


@pytest.mark.parametrize("family", SLIDING)
def test_a_family_without_full_attention_reads_everything(tiny, family):
    model = tiny(family).eval()
    reader, memory, rows = PrefixReader(model), PrefixMemory(), whole_rows(texts(4, 30))
    assert not prefixes_can_be_reused(model)
    reader.rows(*rows, memory, remember=True)
    read = counted(model)
    reader.rows(*rows, memory)
    assert read == [rows[0].numel()]


def test_rotary_frequencies_that_depend_on_the_length_rule_reuse_out(tiny):
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert prefixes_can_be_reused(tiny("llama"))
    assert not prefixes_can_be_reused(tiny("llama", rope_parameters=dynamic))


def test_texts_beyond_the_bound_are_read_again(tiny):
    model = tiny("llama").eval()
    drafts = texts(6, 30)
    rows = whole_rows(drafts)
    plenty = PrefixMemory()
    PrefixReader(model).rows(*rows, plenty, remember=True)
    tight = PrefixMemory(max_bytes=plenty._num_bytes // 2)
    PrefixReader(model).rows(*rows, tight, remember=True)
    known = [tight.recall(draft[:-1])[0] == len(draft) - 1 for draft in drafts]
    assert any(known) and not all(known) and tight._num_bytes <= plenty._num_bytes // 2
    lines: list[str] = []
    assert tight.report("teacher", lines.append) and not plenty.report("teacher", lines.append)
    dropped = sum(len(draft) - 1 for draft, is_known in zip(drafts, known, strict=True) if not is_known)
    assert len(lines) == 1 and f"{dropped} tokens of the teacher were not stored" in lines[0]
    expected = body(model)(*rows[:2]).flatten(0, 1)[rows[2]]
    torch.testing.assert_close(PrefixReader(model).rows(*rows, tight), expected, rtol=1e-5, atol=1e-5)


def test_the_limit_on_a_gpu_is_a_part_of_its_unallocated_memory(monkeypatch):
    """13B teacher in bf16, 26 GB, on 80 GB: 4,096 tokens of 0.82 MB fit; with 1 GiB, 1,300 of them did."""
    assert prefix.memory_limit("cpu") == prefix.MEMORY_BYTES
    values = {"mem_get_info": (70 << 30, 80 << 30), "memory_allocated": 40 << 30, "memory_reserved": 44 << 30}
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert prefix.memory_limit("cuda") == 10 << 30  # 80 - 40 are not allocated
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 80 << 30))
    assert prefix.memory_limit("cuda") == 2 << 30  # another process uses the rest: 4 free, and 44 - 40 that this process keeps


def test_the_longest_common_prefix_is_found(tiny):
    model = tiny("llama").eval()
    memory, drafts = PrefixMemory(), [(3, 4, 5, 6, 0), (3, 4, 9, 0), (8, 0), (3, 7, 7, 7, 0)]
    PrefixReader(model).rows(*whole_rows(drafts), memory, remember=True)
    for text, known in (((3, 4, 5, 7), 3), ((3, 4, 5, 6), 4), ((3, 4, 8), 2), ((3,), 1), ((8, 8), 1), ((9, 3), 0), ((), 0)):
        assert memory.recall(text)[0] == known


# --- generation -----------------------------------------------------------------------------------------------------------


def generated(model, requests, memory=None, batch_size=4, **options):
    return generate(model, requests, Sampling(), end_ids=(2, 3), pad_id=0, batch_size=batch_size, memory=memory, **options)


def drafts_and_tails(model, memory, batch_size=4):
    """Drafts of different lengths, and the tails from a token inside each of them."""
    wanted = [
        GenerationRequest(prompt_ids=prompt, max_new_tokens=6 + 3 * i, seed=10, stream=("response", 1, i))
        for i, prompt in enumerate(texts(10, 12))
    ]
    drafts = generated(model, wanted, memory, batch_size)
    tails = [
        GenerationRequest(
            prompt_ids=request.prompt_ids + draft.token_ids[: len(draft.token_ids) * i // 10] + (7,),
            max_new_tokens=8,
            seed=10,
            stream=("tail", 1, i),
        )
        for i, (request, draft) in enumerate(zip(wanted, drafts, strict=True))
    ]
    return wanted, drafts, generated(model, tails, memory, batch_size)


@pytest.mark.parametrize("family", FAMILIES + SLIDING)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_tails_are_those_of_reading_their_prefixes_again(tiny, family, batch_size):
    model = tiny(family)
    _, drafts, tails = drafts_and_tails(model, PrefixMemory(), batch_size)
    assert (drafts, tails) == drafts_and_tails(model, None)[1:]
    lengths = {len(draft.token_ids) for draft in drafts}
    assert min(lengths) < 7 < 10 < max(lengths), "rows end early and leave the cache"


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_generated_text_is_not_read_again(tiny, family):
    """All tokens of drafts are known, also of rows that ended early; each tail reads one token before the first new one."""
    model, memory = tiny(family), PrefixMemory()
    wanted, drafts, _ = drafts_and_tails(model, memory)
    whole = [request.prompt_ids + draft.token_ids for request, draft in zip(wanted, drafts, strict=True)]
    assert all(memory.recall(text[:-1])[0] == len(text) - 1 for text in whole)
    read = counted(model)
    rows = whole_rows(whole)
    hidden = PrefixReader(model.eval()).rows(*rows, memory)
    assert read == []
    torch.testing.assert_close(hidden, body(model)(*rows[:2]).flatten(0, 1)[rows[2]], rtol=1e-5, atol=1e-5)
    again = [
        replace(request, prompt_ids=text, stream=("again", i), max_new_tokens=8)
        for i, (request, text) in enumerate(zip(wanted, whole))
    ]
    read.clear()
    generated(model, again, memory, batch_size=16)
    assert read[0] == len(again)


def test_unknown_prompts_are_read_in_one_batch_with_known_prefixes(tiny):
    model, memory = tiny("llama"), PrefixMemory()
    wanted, drafts, _ = drafts_and_tails(model, memory)
    known = [replace(r, prompt_ids=r.prompt_ids + d.token_ids) for r, d in zip(wanted, drafts, strict=True)]
    unknown = [
        GenerationRequest(prompt_ids=t, max_new_tokens=9, seed=10, stream=("new", i)) for i, t in enumerate(texts(3, 25, 7))
    ]
    assert generated(model, known + unknown, memory, batch_size=16) == generated(model, known + unknown)


# --- the cache and the weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_equal_plain_ones_and_are_restored(tiny, family, dtype):
    model = tiny(family).to(dtype).eval()
    ids_BT, mask_BT, _ = whole_rows(texts(3, 12))
    expected = body(model)(ids_BT, mask_BT)
    with packed_layers(body_module(model)):
        assert sum("forward" in vars(module) for module in model.modules()) > 4
        packed = body(model)(ids_BT, mask_BT)
    assert packed.dtype == dtype and not any("forward" in vars(module) for module in model.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(packed, expected, rtol=tolerance, atol=tolerance)


def test_the_last_context_to_exit_unpacks(tiny):
    model = tiny("llama").eval()
    with packed_layers(model):
        with packed_layers(model):
            pass
        assert any("forward" in vars(module) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_packed_layers_use_the_autocast_dtype(tiny):
    model = tiny("llama").eval()
    ids_BT, mask_BT, _ = whole_rows(texts(3, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = body(model)(ids_BT, mask_BT)
        with packed_layers(body_module(model)):
            packed = body(model)(ids_BT, mask_BT)
    assert packed.dtype == expected.dtype
    torch.testing.assert_close(packed.float(), expected.float(), rtol=0.05, atol=0.05)
