"""Blocks of plain text: every token once and in order, one end token per document, no more reading than needed."""

import json
import sys
from types import SimpleNamespace

import pytest

from redistill.data.corpus import load_corpus
from redistill.errors import DataError, ModelError
from tests.worlds import gpt2_tokenizer

DOCUMENTS = ["The cat sleeps.", "The dog\nis in the barn.", "An owl.", "The hen sees the old mill."]


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


def write(folder, text, name="corpus.txt"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def rows(*documents):
    return "".join(json.dumps({"text": document}) + "\n" for document in documents)


def joined(tokenizer, documents):
    """The oracle: each document's ids and an end token, end to end."""
    ids = []
    for document in documents:
        ids += tokenizer(document, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return ids


def flat(blocks):
    return [token for block in blocks for token in block.token_ids]


# --- blocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_tokens", [2, 5, 8])
def test_blocks_hold_every_token_once_and_the_remainder_is_dropped(tmp_path, tokenizer, block_tokens):
    blocks = load_corpus([write(tmp_path, rows(*DOCUMENTS), "c.jsonl")], tokenizer, block_tokens=block_tokens)
    expected = joined(tokenizer, DOCUMENTS)
    assert len(blocks) == len(expected) // block_tokens > 1
    assert flat(blocks) == expected[: len(blocks) * block_tokens]


def test_all_tokens_of_a_block_but_the_first_are_targets(tmp_path, tokenizer):
    blocks = load_corpus([write(tmp_path, rows(*DOCUMENTS), "c.jsonl")], tokenizer, block_tokens=6)
    for number, block in enumerate(blocks):
        assert (block.sample, block.origin, block.num_targets) == (number, "corpus", 5)
        assert block.supervised == (False, True, True, True, True, True)
        assert all(type(token) is int for token in block.token_ids)


def test_indexing_iteration_and_slices_agree(tmp_path, tokenizer):
    blocks = load_corpus([write(tmp_path, rows(*DOCUMENTS), "c.jsonl")], tokenizer, block_tokens=6)
    assert blocks[-1].token_ids == blocks[len(blocks) - 1].token_ids == list(blocks)[-1].token_ids
    assert [block.sample for block in blocks[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("max_blocks", [1, 3])
def test_reading_stops_after_max_blocks(tmp_path, tokenizer, max_blocks):
    first = write(tmp_path, rows(*DOCUMENTS), "c.jsonl")
    blocks = load_corpus([first, "nobody/reads-this"], tokenizer, block_tokens=4, max_blocks=max_blocks)
    assert len(blocks) == max_blocks
    assert flat(blocks) == joined(tokenizer, DOCUMENTS)[: 4 * max_blocks]


def test_sources_are_joined_in_their_order(tmp_path, tokenizer):
    first, second = write(tmp_path, DOCUMENTS[0]), write(tmp_path, rows(DOCUMENTS[2]), "c.jsonl")
    blocks = load_corpus([second, first], tokenizer, block_tokens=2)
    expected = joined(tokenizer, [DOCUMENTS[2], DOCUMENTS[0]])
    assert flat(blocks) == expected[: len(expected) // 2 * 2]


def test_batched_tokenization_equals_one_document_at_a_time(tmp_path, tokenizer):
    documents = [f"The fox {number} sleeps." for number in range(600)]
    blocks = load_corpus([write(tmp_path, rows(*documents), "c.jsonl")], tokenizer, block_tokens=2)
    assert flat(blocks) == joined(tokenizer, documents)[: 2 * len(blocks)]


# --- documents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "The cat.\nIt sleeps.\n\nAn owl.\n",
        "\n\n  \nThe cat.\nIt sleeps.\n\n \t\n\nAn owl.",
        "\ufeffThe cat.\r\nIt sleeps.\r\n\r\nAn owl.\r\n",
    ],
)
def test_blank_lines_separate_documents_of_a_text_file(tmp_path, tokenizer, text):
    blocks = load_corpus([write(tmp_path, text)], tokenizer, block_tokens=2)
    expected = joined(tokenizer, ["The cat.\nIt sleeps.", "An owl."])
    assert flat(blocks) == expected[: len(expected) // 2 * 2]


def test_consecutive_line_breaks_become_one_and_blank_rows_are_skipped(tmp_path, tokenizer):
    path = write(tmp_path, rows("\nThe cat.\n\n\r\n\nIt sleeps.\n\n", " \n", "", "An owl.") + "\n", "c.jsonl")
    expected = joined(tokenizer, ["The cat.\nIt sleeps.", "An owl."])
    assert flat(load_corpus([path], tokenizer, block_tokens=2)) == expected[: len(expected) // 2 * 2]


def test_an_end_token_in_the_text_is_encoded_as_text(tmp_path, tokenizer):
    blocks = load_corpus([write(tmp_path, "The cat<|endoftext|> sleeps.")], tokenizer, block_tokens=2)
    assert tokenizer.eos_token_id not in flat(blocks)[:-1]


def test_no_special_token_is_put_before_a_document(tmp_path, tokenizer):
    """Also with a tokenizer that puts a BOS token before a text."""
    calls = []

    def spy(texts, **options):
        calls.append(options)
        return tokenizer(texts, **options)

    spy.eos_token_id = tokenizer.eos_token_id
    load_corpus([write(tmp_path, DOCUMENTS[0])], spy, block_tokens=2)
    assert calls[0]["add_special_tokens"] is False


# --- the hub ------------------------------------------------------------------------------------------------------------


def hub(monkeypatch, load_dataset):
    errors = SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=errors))
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)


def test_a_hub_data_set_is_streamed_only_as_far_as_needed(monkeypatch, tokenizer):
    seen = []

    def load_dataset(name, **options):
        assert (name, options) == ("some/web-text", {"revision": "v2", "split": "train", "streaming": True})
        for number in range(10_000):
            seen.append(number)
            yield {"text": DOCUMENTS[number % 4], "url": "-"}

    hub(monkeypatch, load_dataset)
    blocks = load_corpus(["some/web-text@v2"], tokenizer, block_tokens=4, max_blocks=2)
    assert flat(blocks) == joined(tokenizer, DOCUMENTS)[:8]
    assert len(seen) < 1000


def test_a_file_without_blank_lines_is_read_in_documents_of_bounded_length(monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr("redistill.data.corpus.MAX_DOCUMENT_CHARACTERS", 20)
    path = tmp_path / "long.txt"
    path.write_text("\n".join("a line of words" for _ in range(9)), encoding="utf-8")
    ends = flat(load_corpus([path], tokenizer, block_tokens=2)).count(tokenizer.eos_token_id)
    assert 3 <= ends <= 5, "about two lines a document"


def test_an_unreachable_hub_is_an_error_with_the_remedy(monkeypatch, tokenizer):
    def load_dataset(name, **options):
        raise ConnectionError("no route\nto host")

    hub(monkeypatch, load_dataset)
    with pytest.raises(DataError, match=r"some/web-text: cannot be read from the hub \(no route\); check name"):
        load_corpus(["some/web-text"], tokenizer, block_tokens=4)


def test_the_error_of_a_hub_row_without_text_has_its_number(monkeypatch, tokenizer):
    hub(monkeypatch, lambda name, **options: iter([{"text": "Hello."}, {"content": "?"}]))
    with pytest.raises(DataError, match="some/web-text, row 2: has no string under 'text'"):
        load_corpus(["some/web-text"], tokenizer, block_tokens=2)


# --- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.txt", b" \n\n", "c.txt: has no text"),
        ("c.jsonl", b"", "c.jsonl: has no text"),
        ("c.jsonl", b'{"text": "Hi."}\n{"text": 3}\n', "c.jsonl:2: has no string under 'text'"),
        ("c.jsonl", b'["Hi."]\n', "c.jsonl:1: has no string under 'text'"),
        ("c.jsonl", b'\n{"text": \n', "c.jsonl:2: not JSON"),
        ("c.jsonl", b'{"text": "\\ud83d"}\n', "c.jsonl:1: 'text' has a lone surrogate"),
        ("c.txt", b"Hi.\n\xff\n", "c.txt:2: not UTF-8 (byte 0xff)"),
        ("c.csv", b"text\nHi.\n", "c.csv: is not a .txt or .jsonl file"),
        ("c.txt", b"Hi.", "tokens; a block needs 512 tokens; give more text, or lower block_tokens"),
    ],
)
def test_an_unusable_file_is_rejected_with_its_line(tmp_path, tokenizer, name, data, message):
    with pytest.raises(DataError) as caught:
        load_corpus([write(tmp_path, data, name)], tokenizer, block_tokens=512)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere/corpus.txt", "./nobody/corpus", "corpus"])
def test_a_source_that_looks_like_a_path_is_never_requested_from_the_hub(tmp_path, monkeypatch, tokenizer, source):
    hub(monkeypatch, lambda name, **options: pytest.fail("requested from the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_corpus([source], tokenizer, block_tokens=4)


def test_a_tokenizer_without_an_end_token_is_rejected(tmp_path):
    with pytest.raises(ModelError, match="no end token"):
        load_corpus([write(tmp_path, "Hi.")], SimpleNamespace(eos_token_id=None), block_tokens=2)
