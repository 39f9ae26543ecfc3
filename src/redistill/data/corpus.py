"""Plain text for the pre-training term: documents joined end to end, and cut into blocks of one length.

Source: the OpenWebText recipe of MiniLLM and DistiLLM - runs of line breaks become one, an end token closes each document, and
what is left after the last whole block is dropped.  Instructions are read elsewhere, by data.reader.
"""

import array
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from redistill.contracts import TokenSequence
from redistill.errors import DataError, ModelError
from redistill.processes import signals

TOKENIZED_AT_ONCE = 256
"""Documents that are handed to the tokenizer together."""

MAX_DOCUMENT_CHARACTERS = 200_000
"""Where a .txt file has no blank lines, it is read in documents of about this length."""

_BREAKS = re.compile(r"(?:\r?\n)+")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_SUFFIXES = (".txt", ".jsonl")


class CorpusBlocks(Sequence[TokenSequence]):
    """Blocks of text as sequences to learn from, made when they are asked for, so that they take 4 bytes a token.

    Every token but a block's first is a target.  `sample` is the number of the block.

    Args:
        ids_KT: Integers, one row a block.
    """

    def __init__(self, ids_KT: np.ndarray) -> None:
        self._ids_KT = ids_KT
        self._supervised = (False, *itertools.repeat(True, ids_KT.shape[1] - 1))

    def __len__(self) -> int:
        return len(self._ids_KT)

    @overload
    def __getitem__(self, place: int) -> TokenSequence: ...

    @overload
    def __getitem__(self, place: slice) -> list[TokenSequence]: ...

    def __getitem__(self, place: int | slice) -> TokenSequence | list[TokenSequence]:
        numbers = range(len(self))[place]
        return [self._block(number) for number in numbers] if isinstance(numbers, range) else self._block(numbers)

    def _block(self, number: int) -> TokenSequence:
        token_ids = tuple(self._ids_KT[number].tolist())
        return TokenSequence(sample=number, token_ids=token_ids, supervised=self._supervised, origin="corpus")


def load_corpus(
    sources: Sequence[str | Path], tokenizer: Any, *, block_tokens: int, max_blocks: int | None = None
) -> CorpusBlocks:
    """Blocks of exactly `block_tokens` tokens, from the sources in their order.

    Args:
        sources: Each a .txt file (documents stand apart by blank lines), a .jsonl file (one document a row, under "text"), or a
            hub name `owner/name` or `owner/name@revision` whose split "train" has a column "text"; it is streamed.  What looks
            like a path is never looked up on the hub.
        tokenizer: A transformers tokenizer with an end token.  A special token that is spelled out in the text is plain text.
        block_tokens: Length of a block, >= 2.
        max_blocks: Reading stops after so many; None reads everything.

    Raises:
        DataError: a source is missing, unreadable or empty, or all of them together fill no block.
        ModelError: the tokenizer has no end token.
    """
    assert block_tokens >= 2 and (max_blocks is None or max_blocks >= 1), (block_tokens, max_blocks)
    if tokenizer.eos_token_id is None:
        raise ModelError("tokenizer: has no end token (eos_token) to close a document with; set one in its folder")
    wanted = None if max_blocks is None else max_blocks * block_tokens
    ids = array.array("i")
    for source in sources:
        if wanted is not None and len(ids) >= wanted:
            break
        before = len(ids)
        for document_ids in _tokenized(_documents(source), tokenizer):
            ids.extend(document_ids)
            if wanted is not None and len(ids) >= wanted:
                break
        if len(ids) == before:
            raise DataError(f"{source}: holds no text; give another file, or leave it out of the corpus")
    num_blocks = min(len(ids) // block_tokens, max_blocks or len(ids))
    if not num_blocks:
        names = ", ".join(map(str, sources))
        raise DataError(
            f"corpus {names}: {len(ids)} tokens, and a block takes {block_tokens}; give more text, or lower block_tokens"
        )
    return CorpusBlocks(np.frombuffer(ids, np.intc, count=num_blocks * block_tokens).reshape(num_blocks, block_tokens))


def _tokenized(documents: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    """Each document that has a token: its ids, and the end token."""
    while texts := list(itertools.islice(documents, TOKENIZED_AT_ONCE)):
        signals.poll()
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        yield from ([*ids, tokenizer.eos_token_id] for ids in encoded if ids)


# --- where documents are ------------------------------------------------------------------------------------------------


def _documents(source: str | Path) -> Iterator[str]:
    """The documents of one source that are not blank, without outer white space and with single line breaks."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in _SUFFIXES:
        raw = _of_text(path) if path.suffix == ".txt" else _of_rows(path)
    elif path.exists():
        raise DataError(f"{source}: is no .txt or .jsonl file; a corpus is read from these, or from a hub name 'owner/name'")
    elif isinstance(source, Path) or not _HUB_NAME.fullmatch(source) or path.suffix in _SUFFIXES or path.parent.exists():
        raise DataError(f"{source}: no such file; give a .txt or .jsonl file, or a hub name 'owner/name'")
    else:
        raw = _of_hub(source)
    return (text for document in raw if (text := _BREAKS.sub("\n", document).strip()))


def _of_text(path: Path) -> Iterator[str]:
    """Runs of lines that are not blank; a longer one than `MAX_DOCUMENT_CHARACTERS` is parted at the end of a line."""
    lines: list[str] = []
    length = 0
    for _, line in _lines(path):
        if lines and (not line.strip() or length > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(lines)
            lines, length = [], 0
        if line.strip():
            lines.append(line)
            length += len(line) + 1
    if lines:
        yield "\n".join(lines)


def _of_rows(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from error
        yield _text_of(row, f"{path}:{number}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, of a file that need not fit into memory."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _of_hub(name: str) -> Iterator[str]:
    for number, row in enumerate(_streamed(name), 1):
        yield _text_of(row, f"{name}, row {number}")


def _streamed(source: str) -> Iterator[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, revision = source.partition("@")
    try:
        yield from load_dataset(name, revision=revision or None, split="train", streaming=True)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: could not be read from the hub ({reason}); check name and network, or give a local .txt or .jsonl file"
        ) from error


def _text_of(row: Any, place: str) -> str:
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place}: has no text under 'text'; a corpus needs one document a row, as {{\"text\": ...}}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{place}: has half a character (a lone surrogate), which is no text; mend or remove the row")
    return text
