"""Rows that say what another row says: duplicates in the training data, and training rows that ask what a test asks."""

import unicodedata
from collections.abc import Iterable

from redistill.data.forms import texts_of
from redistill.records import Record

Question = tuple[str, ...]

# Quotes and stops, Chinese and Spanish ones too.
_OUTER_MARKS = " .,;:!?\u3002\u3001\u00bf\u00a1\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb()[]"


def first_of_each(records: Iterable[Record]) -> list[int]:
    """For each record, the place of the first one with the same prompt and the same answers to the letter: its own, if new.

    Example:
        >>> from redistill.records import RawPrompt
        >>> a, b = (Record(record_id="", prompt=RawPrompt("1 + 1 ="), references=(text,)) for text in (" 2", " two"))
        >>> first_of_each([a, b, a])
        [0, 1, 0]
    """
    first: dict[tuple[object, tuple[str, ...]], int] = {}
    return [first.setdefault((record.prompt, record.references), place) for place, record in enumerate(records)]


def question(record: Record) -> Question:
    """What a record asks, to compare it by: white space and an empty input make no difference.

    A run leaves out of its training rows whatever a test row asks in this sense.

    Example:
        >>> from redistill.records import Instruction
        >>> question(Record(record_id="", prompt=Instruction(" Add.\\n", "1  2"), references=()))
        ('Add.', '1 2')
    """
    return tuple(" ".join(text.split()) for text in texts_of(record.prompt) if text.strip())


def loose_question(record: Record) -> Question:
    """As `question`, but case, width and ligatures (NFKC), and quotes and stops at either end make no difference either.

    What stands inside stays: "2 + 2" and "2 - 2" are not the same.

    Example:
        >>> from redistill.records import RawPrompt
        >>> loose_question(Record(record_id="", prompt=RawPrompt("NAME a \ufb01sh!"), references=()))
        ('name a fish',)
    """
    texts = (unicodedata.normalize("NFKC", text).casefold().strip(_OUTER_MARKS) for text in question(record))
    return tuple(text for text in texts if text)
