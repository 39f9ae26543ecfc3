"""Phrases of English sentences against recorded spans, and of texts that are no sentences."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redistill.data.spans import extract
from redistill.data.spans.extract import CharSpan, load_extractor, prose
from redistill.errors import ModelError

FOX = "The quick brown fox was quietly jumping over the lazy dog in the old garden."
LUNGS = "She gave up smoking after her doctor told her that her lungs' capacity had been reduced by 40%."
TEA = "To make tea, boil fresh water, put leaves into the pot, and don't forget to wait ten minutes."
OUT = "He came out of the house. It helps by transferring knowledge from a large model to a much smaller one."

needs_spacy = pytest.mark.skipif(importlib.util.find_spec(extract.REUPLOAD) is None, reason="pip install 'redistill[spans]'")


@pytest.fixture(scope="module")
def spacy_extractor():
    folder = extract._package_folder(extract.REUPLOAD) / f"{extract.REUPLOAD}-{extract.REUPLOAD_VERSION}"
    return load_extractor(str(folder))


def phrases(extractor, text: str, label: str) -> list[str]:
    (spans,) = extractor.extract([text])
    return [text[span.start : span.end] for span in spans if span.label == label]


@needs_spacy
def test_all_spans_of_a_sentence_equal_the_recorded_ones(spacy_extractor):
    noun = [CharSpan(0, 19, "NP"), CharSpan(45, 57, "NP"), CharSpan(61, 75, "NP")]
    others = [CharSpan(20, 39, "VP"), CharSpan(40, 57, "PP"), CharSpan(58, 75, "PP")]
    assert spacy_extractor.extract([FOX]) == [tuple(sorted(noun + others))]


@needs_spacy
@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        (LUNGS, [(4, 11, "VP"), (37, 41, "VP"), (71, 87, "VP"), (51, 70, "NP"), (88, 94, "PP")]),
        (TEA, [(0, 7, "VP"), (60, 72, "VP"), (73, 80, "VP"), (42, 54, "PP")]),
    ],
)
def test_particles_passives_and_negations_equal_the_recorded_spans(spacy_extractor, text, recorded):
    assert {CharSpan(*span) for span in recorded} <= set(spacy_extractor.extract([text])[0])


@needs_spacy
def test_a_prepositional_phrase_ends_with_its_object_even_through_a_verb_or_a_second_preposition(spacy_extractor):
    expected = ["out of the house", "of the house", "by transferring knowledge", "from a large model", "to a much smaller one"]
    assert phrases(spacy_extractor, OUT, "PP") == expected


@needs_spacy
def test_the_spans_of_a_text_do_not_depend_on_other_texts(spacy_extractor):
    texts = [FOX, "", LUNGS, "   ", TEA, OUT]
    assert spacy_extractor.extract(texts) == [spacy_extractor.extract([text])[0] for text in texts]


@needs_spacy
def test_texts_without_phrases_have_no_spans(spacy_extractor):
    texts = ["", " \n\t ", "😀 😀😀", "\x00", "\ud800", "1 2 3 + 4", "```\nfor dog in the house:\n```"]
    assert spacy_extractor.extract(texts) == [()] * len(texts)


@needs_spacy
def test_spans_have_no_outer_white_space_and_a_letter(spacy_extractor):
    text = f"  {FOX}\n\n * {TEA}\n\x00 \ud83d {LUNGS} the of by of of the"
    for span in spacy_extractor.extract([text])[0]:
        phrase = text[span.start : span.end]
        assert phrase == phrase.strip() and any(map(str.isalpha, phrase))


@needs_spacy
def test_a_text_longer_than_the_limit_of_the_parser_keeps_its_offsets(spacy_extractor, monkeypatch):
    text = f"{FOX}\n\n{LUNGS}\n\n{TEA}"
    whole = spacy_extractor.extract([text])
    monkeypatch.setattr(extract, "MAX_PIECE", 110)
    assert spacy_extractor.extract([text]) == whole


def test_prose_leaves_out_fenced_code_and_keeps_the_offsets():
    text = "A dog.\n```python\nthe = dog\n```\nA cat.\n~~~\nnever closed\n\nA fox."
    assert [(text[base : base + len(part)], part) for base, part in prose(text)] == [(p, p) for p in ("A dog.\n", "\nA cat.\n")]


def test_backticks_within_a_line_are_not_a_fence():
    text = "```print()``` shows the dog.\nA cat."
    assert prose(text) == [(0, text)]


@pytest.mark.parametrize("text", ["a b " * 30, "x" * 120, "one.\n\ntwo.\n" * 12])
def test_long_prose_is_cut_into_parts_that_join_to_the_whole(text, monkeypatch):
    monkeypatch.setattr(extract, "MAX_PIECE", 25)
    parts = prose(text)
    assert "".join(part for _, part in parts).split() == text.split() or "x" in text
    assert all(len(part) <= 25 and text[base : base + len(part)] == part for base, part in parts)
    assert sum(len(part.strip()) for _, part in parts) >= len(text.replace(" ", "").replace("\n", ""))


def test_simple_splits_at_punctuation_function_words_and_line_ends():
    expected = ["make tea", "boil fresh water", "put leaves", "pot", "don't forget", "wait ten minutes"]
    assert phrases(load_extractor("simple"), TEA, "chunk") == expected
    assert phrases(load_extractor("simple"), "red fox\nblue sky 40", "chunk") == ["red fox", "blue sky 40"]
    assert load_extractor("simple").extract(["", "40, 50", "```\ndog\n```"]) == [(), (), ()]


@needs_spacy
def test_auto_uses_the_reviewed_copy_and_describes_it(monkeypatch):
    real = extract._package_folder
    monkeypatch.setattr(extract, "_package_folder", lambda name: None if name == extract.OFFICIAL else real(name))
    description = load_extractor("auto").description
    assert (description["backend"], description["model"], description["version"]) == ("spacy", extract.REUPLOAD, "3.8.0")
    assert len(description["sha256"]) == 64


@needs_spacy
@pytest.mark.parametrize("name", ["tokenizer", "vocab/strings.json"])
def test_a_copy_with_a_changed_file_is_rejected_with_the_name_of_the_file(name, tmp_path, monkeypatch):
    package = tmp_path / extract.REUPLOAD
    shutil.copytree(extract._package_folder(extract.REUPLOAD), package)
    changed = package / f"{extract.REUPLOAD}-{extract.REUPLOAD_VERSION}" / name
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x00")
    monkeypatch.setattr(extract, "_package_folder", {"spacy": tmp_path, extract.REUPLOAD: package}.get)
    with pytest.raises(ModelError, match=f"{name} has an unexpected SHA-256"):
        load_extractor("auto")


def test_without_spacy_auto_falls_back_to_simple_and_names_the_command(monkeypatch):
    monkeypatch.setattr(extract, "_package_folder", lambda name: None)
    with pytest.warns(UserWarning, match=r"pip install 'redistill\[spans\]'"):
        assert load_extractor("auto").description["backend"] == "simple"


@needs_spacy
def test_a_missing_model_is_a_model_error_of_one_line(tmp_path):
    for name in ("no_such_model", str(tmp_path)):
        with pytest.raises(ModelError) as caught:
            load_extractor(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@needs_spacy
def test_a_model_without_a_parser_is_rejected(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ModelError, match="cannot find noun phrases"):
        load_extractor(str(tmp_path / "blank"))


def test_importing_the_module_does_not_import_spacy():
    code = "import sys, redistill.data.spans.extract, redistill.data.spans.align; sys.exit('spacy' in sys.modules)"
    source = Path(extract.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}).returncode == 0
