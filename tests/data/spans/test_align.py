"""Laws of the alignment, with byte-level BPE and metaspace tokenizers (with byte fallback) trained on a few words."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from redistill.data.spans.align import align, offsets_from_ids, token_spans
from redistill.data.spans.extract import CharSpan, load_extractor

CORPUS = [
    "the lazy dog sleeps in the old garden",
    "déjà vu 😀 😁 中文 naïve  two  spaces\nnew line",
    "don't give up, 40% of it",
] * 3
EOS = "<eos>"


class Decoder:
    """A tokenizers.Tokenizer behind the signature of a transformers tokenizer; counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0

    def decode(self, token_ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        self.decoded += len(token_ids)
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids


def byte_level() -> Decoder:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=[EOS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return Decoder(tokenizer)


def metaspace() -> Decoder:
    pieces = ["▁the", "▁lazy", "▁dog", "▁old", "▁gar", "den", "▁", "▁d", "▁vu", "og", ".", ",", "▁two", "▁spaces"]
    vocabulary = [EOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *"abcdefghijklmnopqrstuvwxyz"]
    scores = [0.0, 0.0, *([-20.0] * 256), *([-1.0] * len(pieces)), *([-8.0] * 26)]
    tokenizer = Tokenizer(models.Unigram(list(zip(vocabulary, scores, strict=True)), unk_id=1, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    space, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), strip])
    return Decoder(tokenizer)


TOKENIZERS = {"byte level": byte_level(), "metaspace": metaspace()}
by_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
words = st.text(st.sampled_from("the lazydog,.\n é中文😀👩‍👩‍👧 "), max_size=60)


def test_a_token_with_a_leading_space_belongs_to_its_span():
    text = "the lazy dog"
    offsets = [(0, 3), (3, 6), (6, 7), (7, 8), (8, 10), (10, 12)]
    assert align([CharSpan(4, 12, "NP")], offsets, text) == ((1, 6),)


def test_a_token_does_not_belong_to_a_span_that_overlaps_only_its_leading_space():
    assert align([CharSpan(0, 4, "NP")], [(0, 3), (3, 8)], "the lazy") == ((0, 1),)


def test_all_byte_tokens_of_a_character_belong_to_its_span():
    assert align([CharSpan(0, 5, "NP")], [(0, 3), (3, 5), (4, 5), (4, 5), (5, 7)], "one 😀 a") == ((0, 4),)


def test_empty_spans_are_dropped_and_equal_ranges_merged_and_sorted():
    spans = [CharSpan(4, 7, "PP"), CharSpan(5, 7, "NP"), CharSpan(3, 4, "NP"), CharSpan(0, 3, "NP")]
    assert align(spans, [(0, 3), (3, 7)], "the dog") == ((0, 1), (1, 2))


def test_no_range_contains_a_special_token():
    assert align([CharSpan(0, 7, "NP")], [(0, 0), (0, 3), (0, 0), (3, 7), (0, 0)], "the dog") == ((1, 2), (3, 4))


@given(
    text=words, cuts=st.lists(st.integers(0, 60), max_size=12), ends=st.lists(st.tuples(*[st.integers(0, 60)] * 2), max_size=4)
)
@settings(max_examples=150, deadline=None)
def test_align_agrees_with_comparing_every_token_with_every_span(text, cuts, ends):
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    offsets = [(a, b) for a, b in pairwise(cuts) if b > 0]
    spans = [CharSpan(min(pair), max(pair), "NP") for pair in ends]
    expected = set()
    for span in spans:
        inside = [t for t, (a, b) in enumerate(offsets) if trimmed(text, a, b) & set(range(span.start, span.end))]
        if inside:
            expected.add((inside[0], inside[-1] + 1))
    assert align(spans, offsets, text) == tuple(sorted(expected))


def trimmed(text: str, start: int, end: int) -> set[int]:
    solid = [c for c in range(start, end) if not text[c].isspace()]
    return set(range(solid[0], solid[-1] + 1)) if solid else set()


@given(text=words)
@settings(max_examples=200, deadline=None)
def test_byte_level_ids_get_the_offsets_of_the_text_they_were_encoded_from(text):
    tokenizer = TOKENIZERS["byte level"]
    encoding = tokenizer.tokenizer.encode(text)
    assert offsets_from_ids(encoding.ids, tokenizer) == (text, [tuple(o) for o in encoding.offsets])


@by_tokenizer
@given(text=words)
@settings(max_examples=100, deadline=None)
def test_offsets_agree_with_decoding_each_prefix(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.ids(text)
    decoded, offsets = offsets_from_ids(ids, tokenizer)
    assert decoded == text
    for n in range(len(ids) + 1):
        prefix = tokenizer.tokenizer.decode(ids[:n])
        if not prefix.endswith("\ufffd"):
            assert all(end <= len(prefix) for _, end in offsets[:n]) and all(start >= len(prefix) for start, _ in offsets[n:])


@by_tokenizer
def test_offsets_of_random_ids_cover_the_text_in_order(name):
    tokenizer = TOKENIZERS[name]
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids = rng.integers(1, tokenizer.tokenizer.get_vocab_size(), size=40).tolist()
        text, offsets = offsets_from_ids(ids, tokenizer)
        assert all(0 <= a <= b <= len(text) for a, b in offsets)
        assert offsets == sorted(offsets) and [b for _, b in offsets] == sorted(b for _, b in offsets)
        covered = {c for a, b in offsets for c in range(a, b)}
        assert all(c in covered for c, character in enumerate(text) if character != "\ufffd")


@by_tokenizer
def test_special_ids_have_no_text_and_an_empty_offset(name):
    tokenizer = TOKENIZERS[name]
    eos = tokenizer.tokenizer.token_to_id(EOS)
    ids = tokenizer.ids("the lazy dog")
    text, offsets = offsets_from_ids([*ids, eos], tokenizer, {eos})
    assert text == "the lazy dog" and offsets[-1] == (0, 0) and (0, 0) not in offsets[:-1]


@by_tokenizer
def test_the_number_of_decoded_tokens_is_linear_in_the_number_of_ids(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.ids("the lazy dog 😀 " * 100)
    tokenizer.decoded = 0
    offsets_from_ids(ids, tokenizer)
    assert tokenizer.decoded < 30 * len(ids)


@by_tokenizer
def test_the_tokens_of_a_phrase_decode_to_the_phrase(name):
    tokenizer = TOKENIZERS[name]
    ids = [tokenizer.ids("the 😀 lazy dog of the old garden"), []]
    spans, none = token_spans(ids, tokenizer, load_extractor("simple"))
    decode = tokenizer.tokenizer.decode
    assert [decode(ids[0][a:b]).strip() for a, b in spans] == ["lazy dog", "old garden"] and none == ()
