"""The toy world is deterministic, its splits are disjoint, its answers are correct, and its tokenizer covers it."""

import re
from collections import Counter

import pytest

from redistill.data.templates import render_prompt
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.randomness import generator
from redistill.toy.tasks import KINDS
from redistill.toy.words import CATEGORIES, NUMBERS, OPPOSITES, SCALES, TOPICS
from redistill.toy.world import END, PAD, toy_records, toy_tokenizer

SPLITS = ("teacher", "train", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="module")
def questions():
    """Test records by kind; each has every correct answer."""
    by_kind = {kind: [] for kind in KINDS}
    for record in toy_records(500, 10, "test"):
        by_kind[record.record_id.removeprefix("toy-test-").partition(":")[0]].append(record)
    return by_kind


def numbers(text):
    """All number words of a text, as numbers."""
    return [NUMBERS.index(word) for word in re.findall(r"[a-z-]+", text.lower()) if word in NUMBERS]


def test_a_record_depends_on_seed_split_and_index_alone():
    assert toy_records(30, 10, "train")[:7] == toy_records(7, 10, "train")
    assert toy_records(7, 10, "train") != toy_records(7, 20, "train")


def test_no_question_is_in_two_splits_for_any_seeds():
    prompts = [{record.prompt for record in toy_records(400, seed, split)} for seed, split in enumerate(SPLITS)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) > 4 * 300


def test_training_records_have_one_answer_and_test_records_all():
    assert {len(record.references) for split in SPLITS[:2] for record in toy_records(50, 10, split)} == {1}
    for record in toy_records(50, 10, "validation"):
        assert len(set(record.references)) == len(record.references) >= 4


def test_the_first_phrasing_of_an_answer_is_the_most_frequent_and_all_occur():
    records = [r for r in toy_records(700, 10, "teacher") if "-polite:" in r.record_id]
    starts = Counter(record.references[0].split()[0] for record in records)
    assert starts.most_common(1)[0][0] == "Could" and set(starts) == {"Could", "Would", "Please", "I"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_occurs_with_four_phrasings_of_question_and_answer(kind, questions):
    question = KINDS[kind](generator(1, kind))
    assert questions[kind] and len(set(question.asks)) >= 4 and len(set(question.answers)) >= 4


def test_answers_are_whole_sentences_of_five_to_twenty_words(questions):
    for records in questions.values():
        for answer in (answer for record in records for answer in record.references):
            assert 5 <= len(answer.split()) <= 20 and answer[0].isupper() and answer[-1] in ".?", answer


def test_results_of_arithmetic_are_correct(questions):
    for record in questions["arithmetic"]:
        a, b = numbers(record.prompt.instruction)
        sign = next(s for s in ("plus", "sum", "minus", "difference", "times", "product") if s in record.prompt.instruction)
        result = {"plus": a + b, "sum": a + b, "minus": a - b, "difference": a - b, "times": a * b, "product": a * b}[sign]
        assert all(numbers(answer)[-1] == result for answer in record.references)


def test_story_sums_are_correct(questions):
    for record in questions["story-sum"]:
        a, b = numbers(record.prompt.input)
        result = a + b if "more from" in record.prompt.input else a - b
        assert all(result in numbers(answer) and {a, b, result} >= set(numbers(answer)) for answer in record.references)


def test_answers_of_extraction_contain_the_requested_fact(questions):
    form = re.compile(r"On (\w+ \w+), (\w+) \w+ (an? \w+ \w+) to the (\w+)\.")
    for record in questions["extraction"]:
        when, person, thing, place = form.match(record.prompt.input).groups()
        word = re.search("Who|What|Where|When", record.prompt.instruction).group()
        expected = {"Who": person, "What": thing, "Where": place, "When": when}[word]
        assert all(expected.lower() in answer.lower() for answer in record.references), record


def test_topics_and_members_are_correct(questions):
    places = {actor: topic.name for topic in TOPICS for actor in topic.actors}
    for record in questions["topic"]:
        name = places[record.prompt.input.split()[1]]
        assert all(name in answer for answer in record.references)
    for record in questions["membership"]:
        name = next(name for name in CATEGORIES if name in record.prompt.instruction)
        members = [word for word in record.prompt.input.split(", ") if word in CATEGORIES[name]]
        assert len(members) == 2
        assert all(member in answer for member in members for answer in record.references)


def test_opposites_and_orders_are_correct(questions):
    other = {**dict(OPPOSITES), **{new: old for old, new in OPPOSITES}}
    for record in questions["opposite"]:
        assert all(other[record.prompt.input.split()[1]] in answer for answer in record.references)
    for record in questions["sorting"]:
        given = record.prompt.input.split(", ")
        right = sorted(given, key=NUMBERS.index if given[0] in NUMBERS else None)
        for answer in record.references:
            assert [word for word in re.findall(r"\w+", answer) if word in given] == right


def test_comparisons_are_judged_correctly(questions):
    for record in questions["comparison"]:
        _, said = record.prompt.input.split(" says that ")
        first, word, second = re.match(r"an? (\w+) is (.+) than an? (\w+)\.", said).groups()
        scale = next(scale for scale in SCALES if word in (scale.more, scale.less))
        is_more = scale.things.index(first) > scale.things.index(second)
        truth = is_more == (word == scale.more)
        assert all(("No" not in answer and "wrong" not in answer) is truth for answer in record.references)


def test_the_tokenizer_is_the_same_each_time_and_has_its_two_special_tokens(tokenizer):
    assert toy_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) == 1536
    assert tokenizer.convert_ids_to_tokens([tokenizer.eos_token_id, tokenizer.pad_token_id]) == [END, PAD]


def test_any_text_survives_encoding_and_decoding(tokenizer, questions):
    texts = [render_prompt(r.prompt, "alpaca", None) + r.references[0] for records in questions.values() for r in records[:5]]
    for text in [*texts, "Ünï 😀\n\t x"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_sequences_are_short(tokenizer):
    examples, report = tokenize_training(toy_records(200, 10, "train"), tokenizer, TokenizeConfig(), seed=10)
    assert len(examples) == 200 and report.num_cut == 0
    assert max(len(example.prompt_ids) for example in examples) <= 110
    assert max(sum(example.supervised) for example in examples) <= 40
