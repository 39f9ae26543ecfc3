"""Masks and prompts with tokenizers of three families: exactly the answer and its end token are targets."""

from itertools import groupby, pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from redistill.data.templates import render_prompt
from redistill.data.tokenize import TokenizeConfig, response_text, tokenize_prompts, tokenize_training
from redistill.errors import ConfigError, DataError, ModelError
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from tests.tokenizers import CHATML

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    "### Instruction:\nName a colour of the sky.\n\n### Input:\nat noon\n\n### Response:\nThe sky is blue.\n\n\n",
]


def byte_level(specials, front=None, **names):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    )
    if front:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{front} $A", special_tokens=[(front, specials.index(front))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def gpt2_like():
    return byte_level(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def opt_like():
    return byte_level(["<s>", "<pad>", "</s>"], front="</s>", bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def llama_like():
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    letters = [text.replace("\n", " ") for text in CORPUS]
    tokenizer.train_from_iterator(letters, trainers.BpeTrainer(vocab_size=360, special_tokens=specials, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def chatml():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(specials, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


FAMILIES = {"gpt2": gpt2_like, "opt": opt_like, "llama": llama_like}
FRONT = {"gpt2": [], "opt": [2], "llama": [1]}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, FAMILIES[request.param]()


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_like()


def record(prompt, *references, name="r:1"):
    return Record(record_id=name, prompt=prompt, references=references or ("The sky is blue.",))


def one(rec, tokenizer, **settings):
    (example,), _ = tokenize_training([rec], tokenizer, TokenizeConfig(**settings), seed=10)
    return example


def targets(example):
    return [token for token, supervised in zip(example.token_ids, example.supervised, strict=True) if supervised]


def runs(example):
    """The runs of targets, as lists of ids."""
    grouped = groupby(zip(example.token_ids, example.supervised, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in pairs] for supervised, pairs in grouped if supervised]


PROMPTS = {
    "instruction": Instruction("Name a colour."),
    "input": Instruction("Name a colour of", "the sky\n"),
    "raw": RawPrompt("The sky is"),
    "conversation": Conversation((Turn("user", "Sky?"), Turn("assistant", "Blue."), Turn("user", "Why?"))),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("answer", ["The sky is blue.", "\n\nThe sky.", " blue", "Ünï 😀"])
def test_targets_are_the_answer_and_the_end_token(family, prompt, answer):
    _, tokenizer = family
    example = one(record(prompt, answer), tokenizer, template="alpaca")
    found = targets(example)
    assert found[-1] == tokenizer.eos_token_id and example.supervised[-1]
    assert tokenizer.decode(found[:-1], clean_up_tokenization_spaces=False).strip() == answer.strip()
    assert example.supervised == (False,) * len(example.prompt_ids) + (True,) * len(found)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("answer", ["The sky is blue.", "\n\nThe sky.", "n"])
def test_a_gold_sequence_begins_with_the_evaluation_prompt(family, prompt, answer):
    name, tokenizer = family
    rec = record(prompt, answer)
    (prompt_ids,) = tokenize_prompts([rec], tokenizer, TokenizeConfig(template="alpaca"))
    example = one(rec, tokenizer, template="alpaca")
    assert example.prompt_ids == prompt_ids == example.token_ids[: len(prompt_ids)]
    assert list(prompt_ids[:1]) == FRONT[name] or not FRONT[name]
    plain = tokenizer(render_prompt(prompt, "alpaca", tokenizer), add_special_tokens=False)["input_ids"]
    assert list(prompt_ids) == FRONT[name] + plain


def test_a_raw_prompt_with_a_bos_token_gets_no_second_one():
    tokenizer = llama_like()
    (ids,) = tokenize_prompts([record(RawPrompt("<s>The sky"))], tokenizer, TokenizeConfig())
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_an_end_token_in_an_instruction_row_is_text(gpt2):
    example = one(record(Instruction("What is <|endoftext|>?"), "It is <|endoftext|>."), gpt2)
    assert example.token_ids.count(gpt2.eos_token_id) == 1
    assert gpt2.decode(targets(example)[:-1]) == "It is <|endoftext|>."


def test_a_long_answer_is_truncated_without_an_end_token(gpt2):
    rec = record(Instruction("Name a colour."), "The sky is blue.")
    whole = targets(one(rec, gpt2))
    fits = one(rec, gpt2, response_tokens=len(whole))
    cut = one(rec, gpt2, response_tokens=len(whole) - 1)
    assert targets(fits) == whole and targets(cut) == whole[:-1]
    assert cut.token_ids[-1] != gpt2.eos_token_id
    _, report = tokenize_training([rec], gpt2, TokenizeConfig(response_tokens=3), seed=10)
    assert report.num_cut == 1


def test_a_long_prompt_is_left_out_of_training_and_keeps_its_end_in_evaluation(family):
    name, tokenizer = family
    short, long = record(Instruction("Sky?")), record(Instruction("Sky? " * 40))
    (short_ids, long_ids) = tokenize_prompts([short, long], tokenizer, TokenizeConfig(prompt_tokens=10_000))
    limit = len(short_ids)
    examples, report = tokenize_training([long, short], tokenizer, TokenizeConfig(prompt_tokens=limit), seed=10)
    assert [example.record for example in examples] == [short] and examples[0].sample == 0
    assert (len(examples), report.num_too_long) == (1, 1)
    (prompt_ids,) = tokenize_prompts([long], tokenizer, TokenizeConfig(prompt_tokens=limit))
    front = FRONT[name]
    assert list(prompt_ids) == front + list(long_ids[len(long_ids) - limit + len(front) :])


TALK = Conversation((Turn("system", "Be kind."), Turn("user", "Sky?"), Turn("assistant", "Blue."), Turn("user", "Why?")))


@pytest.mark.parametrize(("supervise", "answers"), [("last", ["Air."]), ("every", ["Blue.", "Air."])])
def test_chat_targets_end_with_the_end_of_turn_marker_of_the_template(supervise, answers):
    tokenizer = chatml()
    example = one(record(TALK, "Air."), tokenizer, template="chat", supervise=supervise)
    assert [tokenizer.decode(run) for run in runs(example)] == [answer + "<|im_end|>" for answer in answers]
    assert example.supervised[-1] and example.token_ids[-1] == tokenizer.eos_token_id
    assert (example.prompt_ids,) == tuple(tokenize_prompts([record(TALK)], tokenizer, TokenizeConfig(template="chat")))
    assert example.token_ids[: len(example.prompt_ids)] == example.prompt_ids


def test_every_answer_of_an_alpaca_conversation_can_be_learned(gpt2):
    example = one(record(TALK, "Air."), gpt2, supervise="every", template="alpaca")
    assert [gpt2.decode(run) for run in runs(example)] == ["Blue.", "Air.<|endoftext|>"]


def test_a_record_without_targets_is_rejected_with_its_reason(gpt2):
    good, bare = record(Instruction("Sky?")), Record(record_id="r:2", prompt=Instruction("Sky?"), references=())
    examples, report = tokenize_training([bare, good], gpt2, TokenizeConfig(), seed=10)
    assert len(examples) == 1 and report.rejected[0].record_id == "r:2" and "no answer" in report.rejected[0].reason


def test_no_remaining_record_is_an_error_with_counts(gpt2):
    with pytest.raises(DataError, match="none of 1 records is left: 1 prompts are longer than prompt_tokens = 3"):
        tokenize_training([record(Instruction("Sky?"))], gpt2, TokenizeConfig(prompt_tokens=3), seed=10)


@pytest.mark.parametrize(("reference", "chosen"), [("first", "blue sky"), ("longest", "a blue sky"), ("shortest", "blue")])
def test_one_of_several_references_is_the_target(gpt2, reference, chosen):
    rec = record(Instruction("Sky?"), "blue sky", "a blue sky", "blue")
    assert gpt2.decode(targets(one(rec, gpt2, reference=reference))[:-1]) == chosen


def test_random_references_differ_by_sample_and_repeat_by_seed(gpt2):
    records = [record(Instruction("Sky?"), "a", "b", "c")] * 20
    draws = [
        [tuple(targets(example)) for example in tokenize_training(records, gpt2, TokenizeConfig(reference="random"), seed)[0]]
        for seed in (10, 10, 20)
    ]
    assert len(set(draws[0])) == 3 and draws[0] == draws[1] != draws[2]


def test_samples_are_numbered_from_zero_without_gaps(gpt2):
    records = [record(Instruction("Sky?")), record(Instruction("Sky? " * 99)), record(Instruction("Blue?"))]
    examples, _ = tokenize_training(records, gpt2, TokenizeConfig(prompt_tokens=120), seed=10)
    assert [example.sample for example in examples] == [0, 1]
    assert all(a.sample + 1 == b.sample for a, b in pairwise(examples))


def test_response_text_stops_at_the_end_token_and_leaves_special_tokens_out(family):
    _, tokenizer = family
    answer = one(record(Instruction("Sky?"), "The sky is blue ."), tokenizer)
    ids = [*targets(answer), *targets(answer)]
    assert response_text(ids, tokenizer, [tokenizer.eos_token_id]) == "The sky is blue ."
    assert response_text([tokenizer.eos_token_id, *ids], tokenizer, [tokenizer.eos_token_id]) == ""
    assert tokenizer.eos_token not in response_text(ids, tokenizer, [])


def test_a_tokenizer_without_an_end_token_is_rejected():
    tokenizer = byte_level(["<|endoftext|>"])
    with pytest.raises(ModelError, match="no end token"):
        tokenize_training([record(Instruction("Sky?"))], tokenizer, TokenizeConfig(), seed=10)


@pytest.mark.parametrize(
    "settings", [{"prompt_tokens": 0}, {"response_tokens": 0}, {"template": "Alpaca"}, {"reference": "best"}]
)
def test_settings_out_of_range_are_rejected_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TokenizeConfig(**settings)
