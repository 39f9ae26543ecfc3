"""Are two vocabularies the same, padded, or different?

Distillation compares the teacher's and the student's probabilities class by class, which means something only where a class is
the same token on both sides.  The judge is the pair of token -> id maps: the sizes of the models say little, since families pad
their embeddings differently (Qwen2.5 has 152,064 rows at 7B and 151,936 at 0.5B for one tokenizer).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from redistill.errors import VocabularyError

NAMED_DIFFERENCES = 3


@dataclass(frozen=True, kw_only=True)
class VocabularyMatch:
    """What a teacher and a student share.

    Args:
        size: Number of classes that both heads are cut to; softmax over them renormalises.
        teacher_size, student_size: Rows of the two heads before the cut.
    """

    size: int
    teacher_size: int
    student_size: int

    @property
    def padded(self) -> bool:
        """Whether either head has rows beyond the shared classes."""
        return max(self.teacher_size, self.student_size) > self.size


def compare(teacher: Mapping[str, int], student: Mapping[str, int], teacher_size: int, student_size: int) -> VocabularyMatch:
    """The classes that teacher and student share, or an error that names where they part.

    Equal maps share as many classes as the smaller head has rows.  Any difference of the maps is refused, added tokens too: an
    id that one side reads as a token and the other never learnt would be distilled into noise.

    Args:
        teacher, student: Token -> id, added tokens included (`tokenizer.get_vocab()`).
        teacher_size, student_size: Rows of each model's head.

    Raises:
        VocabularyError: the maps differ, or a head has no row for some id.

    Example:
        >>> compare({"a": 0, "b": 1}, {"a": 0, "b": 1}, 8, 4)
        VocabularyMatch(size=4, teacher_size=8, student_size=4)
    """
    if teacher != student:
        raise VocabularyError(_difference(teacher, student))
    highest = max(teacher.values(), default=-1)
    for side, size in (("teacher", teacher_size), ("student", student_size)):
        if highest >= size:
            raise VocabularyError(
                f"{side} vocabulary: the tokenizer has id {highest}, the model only {size} rows; "
                f"load the {side}'s own tokenizer, or resize the model's embeddings"
            )
    return VocabularyMatch(size=min(teacher_size, student_size), teacher_size=teacher_size, student_size=student_size)


def _difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> str:
    teacher_tokens, student_tokens = _by_id(teacher), _by_id(student)
    ids = sorted(
        i for i in teacher_tokens.keys() | student_tokens.keys() if teacher_tokens.get(i, ()) != student_tokens.get(i, ())
    )
    named = "; ".join(
        f"id {i} is {_name(teacher_tokens, i)} in the teacher and {_name(student_tokens, i)} in the student"
        for i in ids[:NAMED_DIFFERENCES]
    )
    more = f"; and {len(ids) - NAMED_DIFFERENCES} more" if len(ids) > NAMED_DIFFERENCES else ""
    return f"teacher and student vocabularies differ: {named}{more}; choose a teacher and a student with one tokenizer"


def _by_id(vocabulary: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    tokens: dict[int, list[str]] = {}
    for token, i in vocabulary.items():
        tokens.setdefault(i, []).append(token)
    return {i: tuple(sorted(names)) for i, names in tokens.items()}


def _name(tokens: Mapping[int, tuple[str, ...]], i: int) -> str:
    return " or ".join(repr(token) for token in tokens[i]) if i in tokens else "no token"
