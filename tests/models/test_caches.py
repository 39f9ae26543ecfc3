"""Reading with a cache is reading without one, in every kind of cache; a family that differs is rejected by name."""

import inspect

import pytest
import torch

from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ConfigError, ModelError
from redistill.generation.generate import generate
from redistill.models.caches import CachedBody, Columns, LeanLayer, check_cache, new_cache
from redistill.models.families import body, body_module, position_limit
from redistill.models.initialise import fresh_model
from redistill.tensors import pad
from tests.models.family_configs import FAMILIES, SIZES, is_known

# One family for each kind of cache: attention, sliding windows, convolutions, recurrent states, both in one layer, states with
# and without attention layers, and indexers.
KINDS = ("GPT-2", "Gemma 2", "LFM2", "Qwen3.5", "Bamba", "Falcon-H1", "Mamba", "Mamba 2", "DeepSeek-V3.2")
KINDS = tuple(filter(is_known, KINDS))
ROWS = [tuple(range(3, 15)), tuple(range(20, 27)), tuple(range(40, 49)), tuple(range(30, 33))]
LONGROPE = {
    "model_type": "phi3",
    **{name: value for name, value in SIZES.items() if name != "head_dim"},
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "factor": 16.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


def clear_cut(config):
    """A model whose weights are large enough for its choices to be clear-cut."""
    model = fresh_model(config, seed=1)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "A_log" not in name:
            weight.mul_(8.0)
    return model


def alone(model, row):
    """hidden_TD of one row without a cache."""
    ids_BT = torch.tensor([row])
    return body(model)(ids_BT, torch.ones_like(ids_BT))[0]


# --- rows leave a cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KINDS)
def test_after_rows_have_left_the_others_are_read_as_before(family):
    model = clear_cut(FAMILIES[family])
    ids_LT, mask_LT = pad(ROWS, 0, side="left")
    position_LT = (mask_LT.cumsum(dim=1) - 1).clamp(min=0)
    reader, rows, expected = CachedBody(model), list(range(len(ROWS))), [alone(model, row) for row in ROWS]
    start = ids_LT.shape[1] - 6
    reader.read(ids_LT[:, :start], mask_LT[:, :start], position_LT[:, :start])
    for column, kept in zip(range(start, start + 6), [[0, 1, 2], [0, 1, 2], [2, 1], [0, 1], [1], [0]]):
        reader.select(torch.tensor(kept))
        rows = [rows[index] for index in kept]
        part = slice(column, column + 1)
        hidden_LD = reader.read(ids_LT[rows, part], mask_LT[rows, : column + 1], position_LT[rows, part])[:, -1]
        own_LD = torch.stack([expected[row][column - ids_LT.shape[1]] for row in rows])
        torch.testing.assert_close(hidden_LD, own_LD, rtol=1e-3, atol=1e-3)


def test_columns_keep_what_was_appended_and_selected():
    generator = torch.Generator().manual_seed(0)
    columns, expected = Columns(), torch.zeros(5, 2, 0, 3)
    for width in (1, 100, 60, 1, 300, 1):
        new = torch.randn(len(expected), 2, width, 3, generator=generator)
        expected = torch.cat([expected, new], dim=2)
        assert torch.equal(columns.append(new), expected)
        if width == 60:
            kept = torch.tensor([0, 2, 3])
            expected = expected[kept]
            assert torch.equal(columns.select(kept), expected)


def test_only_full_attention_uses_lean_layers(tiny):
    assert all(type(layer) is LeanLayer for layer in new_cache(tiny("llama")).layers)
    kinds = [type(layer) is LeanLayer for layer in new_cache(tiny("gemma2")).layers]
    assert kinds == [False, True, True, False]


# --- the argument and the check when a model is loaded --------------------------------------------------------------------


def rename_argument(model, name):
    """Give the forward of the body another name for its cache."""
    module = body_module(model)
    forward = module.forward
    own = next(each for each in ("cache", "past_key_values") if each in inspect.signature(forward).parameters)

    def renamed(input_ids, attention_mask, position_ids=None, use_cache=None, **kwargs):
        given = {own: kwargs.pop(name)} if name in kwargs else {}
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache, **given
        )

    parameters = list(inspect.signature(renamed).parameters.values())
    parameters.insert(-1, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    renamed.__signature__ = inspect.Signature(parameters)
    module.forward = renamed


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_the_cache_is_given_by_the_name_in_the_signature(tiny, name):
    model, wanted = tiny("llama"), [GenerationRequest(prompt_ids=(3, 4, 5), max_new_tokens=9, seed=1, stream=("r", 1))]
    greedy = Sampling(temperature=0)
    expected = generate(model, wanted, greedy, end_ids=(), pad_id=0, batch_size=1)
    rename_argument(model, name)
    check_cache(model, name="m")
    assert generate(model, wanted, greedy, end_ids=(), pad_id=0, batch_size=1) == expected


def test_a_forward_without_a_cache_is_rejected(tiny):
    model = tiny("llama")
    rename_argument(model, "memory")
    with pytest.raises(ModelError, match="llama: the forward function has no argument for a cache"):
        check_cache(model, name="m")


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_cache_passes_and_modes_are_restored(family, dtype):
    model = clear_cut(FAMILIES[family]).to(dtype).train()
    check_cache(model, name="m")
    assert model.training


def test_a_family_that_ignores_its_cache_is_rejected_by_name(tiny):
    model = tiny("llama")
    module = body_module(model)
    forward = module.forward

    def deaf(input_ids, attention_mask, position_ids=None, use_cache=None, cache=None):
        whole = use_cache is False
        return forward(input_ids=input_ids, attention_mask=attention_mask if whole else None, position_ids=position_ids)

    module.forward = deaf
    with pytest.raises(ModelError, match=r"^models/x: the llama family computes different logits with and without a cache;"):
        check_cache(model, name="models/x")


def test_a_family_whose_padding_changes_its_logits_is_rejected_by_name(tiny):
    model = tiny("llama")

    def mixed(module, args, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(dim=1, keepdim=True)
        return output

    body_module(model).register_forward_hook(mixed)
    with pytest.raises(ModelError, match=r"^m: the llama family computes different logits .* alone and in a padded batch; use"):
        check_cache(model, name="m")


def test_an_exception_of_a_forward_is_an_error_of_one_line(tiny):
    model = tiny("llama")

    def fails(module, args, kwargs):
        if kwargs.get("use_cache"):
            raise AttributeError("no such state\nhint")

    body_module(model).register_forward_pre_hook(fails, with_kwargs=True)
    with pytest.raises(
        ModelError, match=r"^m: text cannot be generated with the llama family \(AttributeError: no such state\); use"
    ):
        check_cache(model, name="m")


# --- rotary frequencies that depend on the length -------------------------------------------------------------------------


def greedy_alone(model, prompt, tokens):
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def longrope_prompts():
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(3, 64, (length,), generator=generator).tolist()) for length in (3, 12, 15, 16, 17, 25, 9)]


@pytest.mark.parametrize("batch_size", [7, 3])
def test_with_longrope_the_text_of_a_row_does_not_depend_on_its_batch(batch_size):
    model, prompts = clear_cut(LONGROPE), longrope_prompts()
    expected = [greedy_alone(model, prompt, 10) for prompt in prompts]
    ends = (expected[0][2], expected[3][4])
    wanted = [
        GenerationRequest(prompt_ids=prompt, max_new_tokens=10, seed=1, stream=("r", index))
        for index, prompt in enumerate(prompts)
    ]
    greedy = Sampling(temperature=0)
    whole = generate(model, wanted, greedy, end_ids=(), pad_id=0, batch_size=batch_size)
    assert [text.token_ids for text in whole] == expected
    for text, own in zip(generate(model, wanted, greedy, end_ids=ends, pad_id=0, batch_size=batch_size), expected, strict=True):
        stop = next((index + 1 for index, token in enumerate(own) if token in ends), len(own))
        assert text.token_ids == own[:stop]


def test_with_longrope_the_hidden_states_of_a_row_do_not_depend_on_its_batch():
    model, prompts = clear_cut(LONGROPE), longrope_prompts()
    hidden_BTD = body(model)(*pad(prompts, 0))
    for prompt, hidden_TD in zip(prompts, hidden_BTD, strict=True):
        own_TD = model.model(input_ids=torch.tensor([prompt])).last_hidden_state[0]
        torch.testing.assert_close(hidden_TD[: len(prompt)], own_TD, rtol=1e-4, atol=1e-4)


def test_texts_are_limited_where_their_frequencies_depend_on_earlier_texts(tiny):
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny("llama", rope_parameters=dynamic)
    assert position_limit(model) == 64 and position_limit(tiny("llama")) is None
    long = [GenerationRequest(prompt_ids=(3,) * 60, max_new_tokens=5, seed=1, stream=("r", 1))]
    with pytest.raises(ConfigError, match="must be at most 64, the model's number of positions"):
        generate(model, long, Sampling(), end_ids=(), pad_id=0, batch_size=1)
