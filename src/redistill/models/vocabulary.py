"""A check that teacher and student have the same vocabulary, apart from padding.

Distillation compares the teacher's and the student's probabilities class by class, which is valid only if a class is the same
token in both models.  The check compares the token -> id maps of the two tokenizers, and not the numbers of rows of the
embeddings. Models with the same tokenizer can have different numbers of rows, because some rows are padding: Qwen2.5-7B has
152,064 rows, and Qwen2.5-0.5B has 151,936.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from redistill.errors import VocabularyError

NAMED_DIFFERENCES = 3


@dataclass(frozen=True, kw_only=True)
class VocabularyMatch:
    """The classes that a teacher and a student share.

    Args:
        size: Number of classes, counted from class 0, that both heads use. Probabilities are normalised over these classes.
        teacher_size: Number of rows of the teacher's head, including unused rows.
        student_size: Number of rows of the student's head, including unused rows.
    """

    size: int
    teacher_size: int
    student_size: int

    @property
    def padded(self) -> bool:
        """Whether at least one of the heads has rows beyond the shared classes."""
        return max(self.teacher_size, self.student_size) > self.size


def match_vocabularies(
    teacher: Mapping[str, int], student: Mapping[str, int], teacher_size: int, student_size: int
) -> VocabularyMatch:
    """Check that teacher and student have the same vocabulary.

    Any difference of the two maps from tokens to ids is rejected, even in added tokens. One of the models would not know
    the different token. The error message names the first ids that differ.

    Args:
        teacher, student: Map from tokens to ids of each tokenizer, including added tokens (`tokenizer.get_vocab()`).
        teacher_size, student_size: Number of rows of each model's head.

    Returns:
        The number of classes that both heads use, which is the number of rows of the smaller head; and the number of rows of
        each head.

    Raises:
        VocabularyError: the maps differ, or a head has fewer rows than its tokenizer has ids.

    Example:
        >>> match_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 1}, 8, 4)
        VocabularyMatch(size=4, teacher_size=8, student_size=4)
    """
    if teacher != student:
        raise VocabularyError(_difference(teacher, student))
    highest = max(teacher.values(), default=-1)
    for side, size in (("teacher", teacher_size), ("student", student_size)):
        if highest >= size:
            raise VocabularyError(
                f"{side} vocabulary: the tokenizer has id {highest}, but the model's head has only {size} rows; "
                f"load the {side}'s own tokenizer, or resize the model's embeddings"
            )
    return VocabularyMatch(size=min(teacher_size, student_size), teacher_size=teacher_size, student_size=student_size)


def _difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> str:
    teacher_tokens, student_tokens = _by_id(teacher), _by_id(student)
    ids = sorted(i for i in teacher_tokens.keys() | student_tokens.keys() if teacher_tokens.get(i) != student_tokens.get(i))
    named = "; ".join(
        f"id {i} is {_name(teacher_tokens, i)} in the teacher and {_name(student_tokens, i)} in the student"
        for i in ids[:NAMED_DIFFERENCES]
    )
    more = f"; and {len(ids) - NAMED_DIFFERENCES} more" if len(ids) > NAMED_DIFFERENCES else ""
    return f"teacher and student vocabularies differ: {named}{more}; choose a teacher and a student with the same tokenizer"


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, list[str]]:
    tokens: dict[int, list[str]] = {}
    for token, i in sorted(vocabulary.items()):
        tokens.setdefault(i, []).append(token)
    return tokens


def _name(tokens: Mapping[int, list[str]], i: int) -> str:
    return " or ".join(repr(token) for token in tokens[i]) if i in tokens else "no token"
