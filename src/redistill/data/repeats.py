"""Detection of duplicate rows, and of prompts that are also in a test set."""

import unicodedata
from collections.abc import Iterable

from redistill.data.forms import texts_of
from redistill.records import Record

Question = tuple[str, ...]

# Quotation and punctuation marks, including Chinese and Spanish ones.
_OUTER_MARKS = " .,;:!?\u3002\u3001\u00bf\u00a1\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb()[]"


def first_of_each(records: Iterable[Record]) -> list[int]:
    """For each record, the index of the first record with equal prompt and answers.

    Texts are compared verbatim.  A record without an earlier duplicate gets its own index.

    Example:
        >>> from redistill.records import RawPrompt
        >>> a, b = (Record(record_id="", prompt=RawPrompt("1 + 1 ="), references=(text,)) for text in (" 2", " two"))
        >>> first_of_each([a, b, a])
        [0, 1, 0]
    """
    first: dict[tuple[object, tuple[str, ...]], int] = {}
    return [first.setdefault((record.prompt, record.references), index) for index, record in enumerate(records)]


def question(record: Record) -> Question:
    """A key that is equal for prompts that differ only in white space.

    An empty input is ignored.  A run leaves out the training rows whose key equals that of a test row.

    Example:
        >>> from redistill.records import Instruction
        >>> question(Record(record_id="", prompt=Instruction(" Add.\\n", "1  2"), references=()))
        ('Add.', '1 2')
    """
    return tuple(" ".join(text.split()) for text in texts_of(record.prompt) if text.strip())


def loose_question(record: Record) -> Question:
    """Like `question`, but also ignores case, character width and outer punctuation.

    Texts are normalised by NFKC and case folding, and quotes and punctuation at both ends are removed.  Punctuation inside is
    kept: "2 + 2" and "2 - 2" differ.

    Example:
        >>> from redistill.records import RawPrompt
        >>> loose_question(Record(record_id="", prompt=RawPrompt("NAME a \ufb01sh!"), references=()))
        ('name a fish',)
    """
    texts = (unicodedata.normalize("NFKC", text).casefold().strip(_OUTER_MARKS) for text in question(record))
    return tuple(text for text in texts if text)
