"""Rows that say what another row says: duplicates in the training data, and training rows that ask what a test asks."""

import unicodedata
from collections.abc import Iterable

from redistill.contracts import Record
from redistill.data.forms import texts_of

Question = tuple[str, ...]


def first_of_each(records: Iterable[Record]) -> list[int]:
    """For each record, the place of the first one with the same prompt and the same answers to the letter: its own, if new.

    Example:
        >>> from redistill.contracts import RawPrompt
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
        >>> from redistill.contracts import Instruction
        >>> question(Record(record_id="", prompt=Instruction(" Add.\\n", "1  2"), references=()))
        ('Add.', '1 2')
    """
    return tuple(" ".join(text.split()) for text in texts_of(record.prompt) if text.strip())


def loose_question(record: Record) -> Question:
    """As `question`, but letter case, width and ligatures (NFKC), and marks at either end make no difference either.

    Marks inside stay: "2 + 2" and "2 - 2" are not the same.

    Example:
        >>> from redistill.contracts import RawPrompt
        >>> loose_question(Record(record_id="", prompt=RawPrompt("NAME a \ufb01sh!"), references=()))
        ('name a fish',)
    """
    texts = (_without_outer_marks(unicodedata.normalize("NFKC", text).casefold()) for text in question(record))
    return tuple(text for text in texts if text)


def _without_outer_marks(text: str) -> str:
    marks = "".join({letter for letter in text if unicodedata.category(letter)[0] in "PZ"})
    return text.strip(marks)
