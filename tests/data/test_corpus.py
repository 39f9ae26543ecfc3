"""Blocks of plain text: every token once and in order, an end token a document, and nothing read that is not needed."""

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
    wanted = joined(tokenizer, DOCUMENTS)
    assert len(blocks) == len(wanted) // block_tokens > 1
    assert flat(blocks) == wanted[: len(blocks) * block_tokens]


def test_a_block_is_learned_from_its_second_token_on(tmp_path, tokenizer):
    blocks = load_corpus([write(tmp_path, rows(*DOCUMENTS), "c.jsonl")], tokenizer, block_tokens=6)
    for number, block in enumerate(blocks):
        assert (block.sample, block.origin, block.num_targets) == (number, "corpus", 5)
        assert block.supervised == (False, True, True, True, True, True)
        assert all(type(token) is int for token in block.token_ids)


def test_a_block_is_the_same_whichever_way_it_is_asked_for(tmp_path, tokenizer):
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
    wanted = joined(tokenizer, [DOCUMENTS[2], DOCUMENTS[0]])
    assert flat(blocks) == wanted[: len(wanted) // 2 * 2]


def test_many_documents_are_tokenized_as_one_by_one(tmp_path, tokenizer):
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
def test_documents_of_a_text_stand_apart_by_blank_lines(tmp_path, tokenizer, text):
    blocks = load_corpus([write(tmp_path, text)], tokenizer, block_tokens=2)
    wanted = joined(tokenizer, ["The cat.\nIt sleeps.", "An owl."])
    assert flat(blocks) == wanted[: len(wanted) // 2 * 2]


def test_runs_of_line_breaks_in_a_row_become_one_and_blank_rows_are_no_documents(tmp_path, tokenizer):
    path = write(tmp_path, rows("\nThe cat.\n\n\r\n\nIt sleeps.\n\n", " \n", "", "An owl.") + "\n", "c.jsonl")
    wanted = joined(tokenizer, ["The cat.\nIt sleeps.", "An owl."])
    assert flat(load_corpus([path], tokenizer, block_tokens=2)) == wanted[: len(wanted) // 2 * 2]


def test_a_spelled_out_end_token_is_text(tmp_path, tokenizer):
    blocks = load_corpus([write(tmp_path, "The cat<|endoftext|> sleeps.")], tokenizer, block_tokens=2)
    assert tokenizer.eos_token_id not in flat(blocks)[:-1]


def test_nothing_is_put_in_front_of_a_document(tmp_path, tokenizer):
    """Where a tokenizer begins texts with a BOS, a block does not."""
    asked = []

    def spy(texts, **options):
        asked.append(options)
        return tokenizer(texts, **options)

    spy.eos_token_id = tokenizer.eos_token_id
    load_corpus([write(tmp_path, DOCUMENTS[0])], spy, block_tokens=2)
    assert asked[0]["add_special_tokens"] is False


# --- the hub ------------------------------------------------------------------------------------------------------------


def hub(monkeypatch, load_dataset):
    errors = SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=errors))
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)


def test_a_hub_data_set_is_streamed_and_no_further_than_needed(monkeypatch, tokenizer):
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


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch, tokenizer):
    def load_dataset(name, **options):
        raise ConnectionError("no route\nto host")

    hub(monkeypatch, load_dataset)
    with pytest.raises(DataError, match=r"some/web-text: could not be read from the hub \(no route\); check name and network"):
        load_corpus(["some/web-text"], tokenizer, block_tokens=4)


def test_a_hub_row_without_text_is_named(monkeypatch, tokenizer):
    hub(monkeypatch, lambda name, **options: iter([{"text": "Hello."}, {"content": "?"}]))
    with pytest.raises(DataError, match="some/web-text, row 2: has no text under 'text'"):
        load_corpus(["some/web-text"], tokenizer, block_tokens=2)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("c.txt", b" \n\n", "c.txt: holds no text"),
        ("c.jsonl", b"", "c.jsonl: holds no text"),
        ("c.jsonl", b'{"text": "Hi."}\n{"text": 3}\n', "c.jsonl:2: has no text under 'text'"),
        ("c.jsonl", b'["Hi."]\n', "c.jsonl:1: has no text under 'text'"),
        ("c.jsonl", b'\n{"text": \n', "c.jsonl:2: not JSON"),
        ("c.jsonl", b'{"text": "\\ud83d"}\n', "c.jsonl:1: has half a character"),
        ("c.txt", b"Hi.\n\xff\n", "c.txt:2: not UTF-8 (byte 0xff)"),
        ("c.csv", b"text\nHi.\n", "c.csv: is no .txt or .jsonl file"),
        ("c.txt", b"Hi.", "and a block takes 512; give more text, or lower block_tokens"),
    ],
)
def test_an_unusable_file_is_refused_with_its_line(tmp_path, tokenizer, name, data, said):
    with pytest.raises(DataError) as caught:
        load_corpus([write(tmp_path, data, name)], tokenizer, block_tokens=512)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere/corpus.txt", "./nobody/corpus", "corpus"])
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch, tokenizer, source):
    hub(monkeypatch, lambda name, **options: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_corpus([source], tokenizer, block_tokens=4)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no end token"):
        load_corpus([write(tmp_path, "Hi.")], SimpleNamespace(eos_token_id=None), block_tokens=2)
