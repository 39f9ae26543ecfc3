"""Scores of answers in other scripts than Latin, and notes on references that cannot be scored."""

import re

import pytest
from rouge_score.rouge_scorer import RougeScorer

from redistill.errors import DataError
from redistill.evaluation.metrics import METRICS
from redistill.evaluation.metrics.rouge_l import rouge_l
from redistill.evaluation.metrics.words import words
from redistill.evaluation.scorable import unscorable_notes
from redistill.records import Metric, RawPrompt, Record

# An answer, an answer that is partly correct, and an answer to another question.
ANSWERS = {
    "Chinese": (
        "北京是中国的首都,位于华北平原的北部。",
        "北京是中国的首都。",
        "鸟儿喜欢清晨在树枝上唱歌。",
    ),
    "Japanese": (
        "東京は日本の首都で、人口が最も多い都市です。",
        "東京は日本の首都です。",
        "猫が窓辺に座って雨を眺めていた。",
    ),
    "Thai": ("กรุงเทพเป็นเมืองหลวงของประเทศไทย", "กรุงเทพเป็นเมืองหลวง", "แมวชอบนอนริมหน้าต่าง"),
    "Russian": (
        "Москва является столицей России и её крупнейшим городом.",
        "Москва является столицей России.",
        "Кошка спит на тёплой печке после обеда.",
    ),
    "Arabic": (
        "القاهرة هي عاصمة مصر وأكبر مدينة فيها.",
        "القاهرة هي عاصمة مصر.",
        "ينام القط قرب النافذة كل صباح.",
    ),
    "Hindi": (
        "दिल्ली भारत की राजधानी है और यहाँ संसद भवन स्थित है।",
        "दिल्ली भारत की राजधानी है।",
        "बिल्ली खिड़की के पास चुपचाप सो रही थी।",
    ),
    "Korean": (
        "서울은 대한민국의 수도이며 가장 큰 도시이다.",
        "서울은 대한민국의 수도이다.",
        "고양이가 창가에서 조용히 자고 있었다.",
    ),
    "Greek": (
        "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
        "Η Αθήνα είναι η πρωτεύουσα.",
        "Μια γάτα κοιμάται δίπλα στο παράθυρο.",
    ),
}
ENGLISH = (
    "The Gardens, watered daily, were running dry.",
    "Café “naïve” — it costs 5 € (μ = 0.5), e.g. π or Москва.",
    "Ça va très bien, über alles",
    "42",
    "x² + y² ≤ 1",
)


def record(*references: str) -> Record:
    return Record(record_id="r", prompt=RawPrompt("?"), references=references)


@pytest.mark.parametrize("name", ["rouge_l", "chrf"])
@pytest.mark.parametrize("language", ANSWERS)
def test_a_perfect_answer_scores_100_and_an_unrelated_answer_less_than_20(language, name):
    perfect, partial, unrelated = ANSWERS[language]
    scores = [METRICS[name].scored(answer, record("-", perfect)) for answer in (perfect, partial, unrelated)]
    assert scores[0] == pytest.approx(100.0) and scores[2] < 20.0
    assert scores[0] > scores[1] > scores[2] + 20.0, "the better of two models has the higher score"


@pytest.mark.parametrize("language", ANSWERS)
def test_every_answer_can_be_scored_and_an_english_answer_to_it_scores_0(language):
    perfect, *_ = ANSWERS[language]
    assert METRICS["rouge_l"].can_score(record(perfect)) and rouge_l("The capital is here.", [perfect]) == 0.0


@pytest.mark.parametrize("prediction", [*ENGLISH, ANSWERS["Russian"][0], ""])
@pytest.mark.parametrize("reference", ENGLISH)
def test_references_in_latin_script_are_scored_as_by_rouge_score(reference, prediction):
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, [reference]) == 100.0 * expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Привет, МИР!", ["привет", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs and virama are marks, not separators
        ("我爱GPT-4。", ["我", "爱", "gpt", "4"]),
        ("ｆｕｌｌ　ｗｉｄｔｈ", ["full", "width"]),
        ("می\u200cخواهم", ["میخواهم"]),  # the joiner is invisible
        ("\u0e19\u0e49\u0e33", ["\u0e19\u0e49\u0e4d", "\u0e32"]),  # Thai; the vowel of the text consists of two characters
        ("…!? \u0301 👍", []),
        ("", []),
    ],
)
def test_words_of_a_text_in_any_script(text, expected):
    assert words(text) == expected


def test_case_width_and_normal_form_do_not_matter_for_words():
    assert words("É Ж") == words("e\u0301 ж") and rouge_l("СТОЛИЦА", ["столица"]) == 100.0


@pytest.mark.parametrize("reference", ["", "…", "👍", "—!?"])
def test_a_reference_without_words_is_noted_with_its_row(reference):
    rows = [record("a word"), Record(record_id="toy:7", prompt=RawPrompt("?"), references=(reference,))]
    metrics = [METRICS["rouge_l"], METRICS["exact_match"]]
    (note,) = unscorable_notes({"toy": rows}, {"toy": metrics})
    assert re.match(r"toy: ROUGE-L cannot score 1 of 2 rows \(the first is toy:7\)", note)
    assert "use another metric or remove the rows" in note
    assert not list(unscorable_notes({"toy": rows}, {"toy": metrics}, limit=1))
    assert rouge_l(reference, [reference]) == 0.0, "even the perfect answer has the score 0"


def test_references_with_words_are_not_noted():
    rows = [record("👍", answers[0]) for answers in ANSWERS.values()] + [record(text) for text in ENGLISH]
    of_words = [metric for name, metric in METRICS.items() if name != "final_number"]  # most of these have no number
    assert not list(unscorable_notes({"toy": rows}, {"toy": of_words}))


def test_an_error_of_a_users_function_names_the_metric():
    broken = Metric(name="own", title="own", score=lambda answer, record: 0.0, can_score=lambda record: 1 / 0 > 0)
    with pytest.raises(DataError, match=r"metric own: the value of can_score for r cannot be computed \(ZeroDivisionError"):
        list(unscorable_notes({"toy": [record("a")]}, {"toy": [broken]}))
