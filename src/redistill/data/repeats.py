"""Detection of duplicate rows, and of prompts that are also in a test set."""

import unicodedata
from collections.abc import Iterable

import numpy as np

from redistill.data.rows import Question, Rows, content_digest, first_of_digests, question
from redistill.records import Record

# Quotation and punctuation marks, including Chinese and Spanish ones.
_OUTER_MARKS = " .,;:!?\u3002\u3001\u00bf\u00a1\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb()[]"


def first_of_each(records: Iterable[Record]) -> list[int]:
    """Find, for each record, the first record with the same prompt and answers.

    Texts are compared verbatim.  The result contains one index for each record; it is the record's own index if no earlier
    record is equal.

    Example:
        >>> from redistill.records import RawPrompt
        >>> a, b = (Record(record_id="", prompt=RawPrompt("1 + 1 ="), references=(text,)) for text in (" 2", " two"))
        >>> first_of_each([a, b, a])
        [0, 1, 0]
    """
    if isinstance(records, Rows):
        digests = records.contents
    else:
        digests = np.frombuffer(b"".join(map(content_digest, records)), dtype=np.int64).reshape(-1, 2)
    found: list[int] = first_of_digests(digests).tolist()
    return found


def loose_question(record: Record) -> Question:
    """Return a key that is equal for prompts that differ only in minor details.

    These details are white space, case, character width (full-width or half-width letters), and quotes and punctuation at both
    ends of a text.  Characters are normalised by NFKC and case folding.  Punctuation inside a text is kept, so "2 + 2" and
    "2 - 2" differ.

    Example:
        >>> from redistill.records import RawPrompt
        >>> loose_question(Record(record_id="", prompt=RawPrompt("NAME a \ufb01sh!"), references=()))
        ('name a fish',)
    """
    texts = (unicodedata.normalize("NFKC", text).casefold().strip(_OUTER_MARKS) for text in question(record))
    return tuple(text for text in texts if text)
