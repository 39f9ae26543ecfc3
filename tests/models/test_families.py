"""Body x head is the model, family by family."""

import pytest
import torch
from torch import nn

from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ModelError
from redistill.generation.generate import generate
from redistill.models.families import body, check_split, head, layer_list, position_limit
from redistill.tensors import pad

FAMILIES = ("gpt2", "opt", "llama", "smollm", "gemma2", "gemma3", "qwen2", "qwen3", "cohere", "granite")
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]


@pytest.mark.parametrize("family", FAMILIES)
def test_body_and_head_give_the_models_own_logits(tiny, family):
    model = tiny(family)
    ids_BT, mask_BT = pad(PROMPTS, 0)
    with torch.no_grad():
        own = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        hidden_BTD = body(model)(ids_BT, mask_BT)
        split = head(model).logits(hidden_BTD.flatten(0, 1)).view_as(own)
    real = mask_BT.bool()
    torch.testing.assert_close(split[real], own[real], rtol=1e-5, atol=1e-5)
    assert own[real].std() > 0.01


def greedy_text(model, prompts, tokens):
    """Greedy text without repeated tokens, all prompts in one batch, padded on the left."""
    requests = [
        GenerationRequest(prompt_ids=tuple(p), max_new_tokens=tokens, seed=1, stream=("r", i)) for i, p in enumerate(prompts)
    ]
    sampling = Sampling(temperature=0, no_repeat_ngram=1)
    texts = generate(model, requests, sampling, end_ids=(), pad_id=0, batch_size=len(prompts))
    return [text.token_ids for text in texts]


@torch.no_grad()
def greedy_text_without_cache(model, prompt, tokens):
    """The same by whole forward passes: one row, no padding, no cache."""
    ids = list(prompt)
    for _ in range(tokens):
        logits_V = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), use_cache=False).logits[0, -1]
        logits_V[ids] = -torch.inf
        ids.append(int(logits_V.argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_from_a_padded_batch_with_a_cache_is_that_of_plain_forward_passes(tiny, family):
    """16 tokens: the cache must drop the tokens outside the sliding windows of 6, and no others."""
    model = tiny(family)
    assert greedy_text(model, PROMPTS, 16) == [greedy_text_without_cache(model, prompt, 16) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_the_sliding_window_matters_to_that_text(tiny, family):
    assert greedy_text(tiny(family), PROMPTS, 16) != greedy_text(tiny(family, sliding_window=64), PROMPTS, 16)


def test_the_head_is_cut_to_the_shared_vocabulary_and_shares_its_weights(tiny):
    model = tiny("llama")
    hidden_ND = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(model, 37).logits(hidden_ND), head(model).logits(hidden_ND)[:, :37])
    assert head(model).weight_VD is model.lm_head.weight


@pytest.mark.parametrize(("family", "limit"), [("gpt2", 64), ("opt", 64), ("llama", None), ("gemma2", None)])
def test_only_learned_positions_are_a_limit(tiny, family, limit):
    assert position_limit(tiny(family)) == limit


@pytest.mark.parametrize(
    ("family", "path"), [("gpt2", "transformer.h"), ("opt", "model.decoder.layers"), ("qwen3", "model.layers")]
)
def test_the_layers_are_found(tiny, family, path):
    assert layer_list(tiny(family))[0] == path


def test_a_family_with_other_logits_is_rejected_and_the_mode_restored(tiny):
    model = tiny("granite").train()
    check_split(model, name="m")
    model.config.logits_scaling = 1.0
    head_before = model.lm_head

    class Twisted(nn.Linear):
        def forward(self, input):
            return super().forward(input) * 1.5

    model.lm_head = Twisted(16, 40, bias=False)
    model.lm_head.weight = head_before.weight
    with pytest.raises(ModelError, match="m: the granite family computes its logits in a way"):
        check_split(model, name="m")
    assert model.training


def test_a_head_with_an_adapter_is_rejected(tiny):
    model = tiny("llama", tie_word_embeddings=False)
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="lm_head out of the adapter"):
        head(model)


def test_an_adapter_in_the_body_is_read(tiny):
    from peft import LoraConfig, get_peft_model

    model = tiny("llama")
    ids_BT, mask_BT = pad(PROMPTS[:1], 0)
    plain = body(model)(ids_BT, mask_BT)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.eval()
    hidden_BTD = body(adapted)(ids_BT, mask_BT)
    assert not torch.allclose(hidden_BTD, plain)
    own = adapted(input_ids=ids_BT, attention_mask=mask_BT).logits
    torch.testing.assert_close(head(adapted).logits(hidden_BTD[0]), own[0], rtol=1e-5, atol=1e-5)
