"""Plain text for the pre-training term, in blocks of equal length.

Consecutive line breaks become one line break, and an end token follows each document. The tokens after the last complete block
are dropped. MiniLLM and DistiLLM prepare OpenWebText in the same way. The module `data.reader` reads instruction data.
"""

import array
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from redistill.contracts import TokenSequence
from redistill.data.sources import hub_failed
from redistill.errors import DataError, ModelError
from redistill.interfaces import Tokenizer
from redistill.processes import signals
from redistill.storage.hub import is_local, unreachable
from redistill.storage.json_text import JsonError, parse_json
from redistill.storage.paths import expanded

TOKENIZED_AT_ONCE = 256
"""Number of documents per call of the tokenizer."""

MAX_DOCUMENT_CHARACTERS = 200_000
"""Approximate maximum length, in characters, of a document in a .txt file; a longer document is split at a line end."""

_BREAKS = re.compile(r"(?:\r?\n)+")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_SUFFIXES = (".txt", ".jsonl")


class CorpusBlocks(Sequence[TokenSequence]):
    """Blocks of text as training sequences, which are created on access.

    A block takes 4 bytes of memory per token.  Every token of a block except the first is a target (a token that the student is
    trained to predict).  The field `sample` of a sequence is the index of its block.

    Args:
        ids_KT: Integer token ids of K blocks of T tokens.
    """

    def __init__(self, ids_KT: np.ndarray) -> None:
        self._ids_KT = ids_KT
        self._supervised = (False, *itertools.repeat(True, ids_KT.shape[1] - 1))

    def __len__(self) -> int:
        return len(self._ids_KT)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...

    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        numbers = range(len(self))[index]
        return [self._block(number) for number in numbers] if isinstance(numbers, range) else self._block(numbers)

    def _block(self, number: int) -> TokenSequence:
        token_ids = tuple(self._ids_KT[number].tolist())
        return TokenSequence(sample=number, token_ids=token_ids, supervised=self._supervised, origin="corpus")


def load_corpus(
    sources: Sequence[str | Path], tokenizer: Tokenizer, *, block_tokens: int, max_blocks: int | None = None
) -> CorpusBlocks:
    """Tokenize the sources, in order, into blocks of `block_tokens` tokens.

    Args:
        sources: Files and hub names. In a .txt file, blank lines separate the documents. In a .jsonl file, each row has one
            document, under the key "text". A hub name is `owner/name` or `owner/name@revision`.  The split "train" of a hub
            data set is read; it must have a column "text".  A source that looks like a path is never requested from the hub.
        tokenizer: A transformers tokenizer with an end token.  Special tokens in the text are encoded as plain text.
        block_tokens: Length of a block in tokens, >= 2.
        max_blocks: Maximum number of blocks, >= 1, after which reading stops; if None, everything is read.

    Returns:
        The complete blocks.  The tokens after the last complete block are dropped.

    Raises:
        DataError: a source is missing, unreadable or empty, or all sources together have less than one block.
        ModelError: the tokenizer has no end token.
    """
    assert block_tokens >= 2 and (max_blocks is None or max_blocks >= 1), (block_tokens, max_blocks)
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ModelError(
            "tokenizer: has no end token (eos_token), which must follow each document; set eos_token in tokenizer_config.json"
        )
    max_tokens = math.inf if max_blocks is None else max_blocks * block_tokens
    ids = array.array("i")
    for source in sources:
        if len(ids) >= max_tokens:
            break
        before = len(ids)
        for document_ids in _tokenized(_documents(source), tokenizer, end_id):
            ids.extend(document_ids)
            if len(ids) >= max_tokens:
                break
        if len(ids) == before:
            raise DataError(f"{source}: has no text; give another file, or remove this source from the corpus")
    num_blocks = min(len(ids) // block_tokens, max_blocks or len(ids))
    if not num_blocks:
        found = f"corpus {', '.join(map(str, sources))}: {len(ids)} tokens"
        raise DataError(f"{found}; a block needs {block_tokens} tokens; give more text, or lower block_tokens")
    return CorpusBlocks(np.frombuffer(ids, np.intc, count=num_blocks * block_tokens).reshape(num_blocks, block_tokens))


def _tokenized(documents: Iterator[str], tokenizer: Tokenizer, end_id: int) -> Iterator[list[int]]:
    """Yield the token ids of each document, followed by the end token.

    Documents without a token are left out.
    """
    while texts := list(itertools.islice(documents, TOKENIZED_AT_ONCE)):
        signals.poll()
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        yield from ([*ids, end_id] for ids in encoded if ids)


# --- sources ------------------------------------------------------------------------------------------------------------


def _documents(source: str | Path) -> Iterator[str]:
    """Iterate over the documents of a source; blank documents are left out.

    White space at both ends of a document is removed, and consecutive line breaks are replaced by one line break.
    """
    path = expanded(source)
    if path.is_file() and path.suffix.lower() in _SUFFIXES:
        raw = _of_text(path) if path.suffix.lower() == ".txt" else _of_rows(path)
    elif path.exists():
        raise DataError(f"{source}: is not a .txt or .jsonl file; give one of these, or a hub name 'owner/name'")
    elif isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.suffix.lower() in _SUFFIXES or is_local(source):
        raise DataError(f"{source}: no such file; give a .txt or .jsonl file, or a hub name 'owner/name'")
    else:
        raw = (_text_of(row, f"{source}, row {number}") for number, row in enumerate(_streamed(source), 1))
    return (text for document in raw if (text := _BREAKS.sub("\n", document).strip()))


def _of_text(path: Path) -> Iterator[str]:
    """Divide a .txt file into documents at its blank lines.

    A document longer than `MAX_DOCUMENT_CHARACTERS` is split at a line end.
    """
    lines: list[str] = []
    length = 0
    for _, line in itertools.chain(_lines(path), [(0, "")]):  # a blank line ends the last document
        if lines and (not line.strip() or length > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(lines)
            lines, length = [], 0
        if line.strip():
            lines.append(line)
            length += len(line) + 1


def _of_rows(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = parse_json(line, any_number=True)
        except JsonError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); fix or remove the line") from error
        yield _text_of(row, f"{path}:{number}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a file, without its line end.

    Only one line at a time is in memory.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _streamed(source: str) -> Iterator[object]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, revision = source.partition("@")
    unreachable()  # before the look-up, which would be repeated for minutes
    try:
        yield from load_dataset(name, revision=revision or None, split="train", streaming=True)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise hub_failed(name, error, instead=".txt or .jsonl") from error


def _text_of(row: object, where: str) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where}: has no string under 'text'; each row must be a document, such as {{\"text\": ...}}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{where}: 'text' has a lone surrogate, which is not valid Unicode; fix or remove the row")
    return text
