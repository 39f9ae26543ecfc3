"""The tasks of the toy world, such as arithmetic or sorting.

Each task is a function that samples words and inserts them into sentence templates from phrasings.yaml. A task has several
templates for the question and several for the answer. With the same sampled words, all templates for the question have the
same meaning, and all templates for the answer give a correct answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml

from redistill.toy.words import CATEGORIES, NUMBERS, OPPOSITES, SCALES, TOPICS, VERBS, WORDS, Verb

T = TypeVar("T")

_PHRASINGS: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("phrasings.yaml").read_text(encoding="utf-8"))


class Phrase(str):
    """A word or phrase that can be formatted with an article or a capital letter.

    Example:
        >>> "{thing.a.capital} is here.".format(thing=Phrase("old basket"))
        'An old basket is here.'
    """

    @property
    def a(self) -> "Phrase":
        """The phrase with its indefinite article, as in "an apple"."""
        return Phrase(f"{'an' if self[0] in 'aeiou' else 'a'} {self}")

    @property
    def capital(self) -> "Phrase":
        """The phrase with a capital first letter."""
        return Phrase(self[0].upper() + self[1:])


@dataclass(frozen=True)
class Question:
    """A question in several phrasings, and its correct answers.

    Args:
        asks: The phrasings of the question, each as an instruction and an input.  The input is the text that the instruction
            refers to, or "".
        answers: The correct answers; they answer every phrasing of the question.
    """

    asks: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]


def extraction(random: np.random.Generator) -> Question:
    """Sample a question about two given sentences: who, what, where or when?"""
    parts: dict[str, str | Verb] = {"verb": _one(random, VERBS), "thing": _word(random, "things")}
    parts["person"], parts["other"] = _some(random, WORDS["people"], 2)
    parts["place"], parts["elsewhere"] = _some(random, WORDS["places"], 2)
    parts["coloured"] = f"{_word(random, 'colours')} {parts['thing']}"
    parts["when"] = _time(random)
    asked = _question(_one(random, ("who", "what", "where", "when")), **parts)
    return Question(_question("extraction", question=asked.asks[0][0], **parts).asks, asked.answers)


def sentiment(random: np.random.Generator) -> Question:
    """Sample a question: is a sentence positive or negative, and why?"""
    good = bool(random.integers(2))
    label, feeling = ("positive", "happy") if good else ("negative", "unhappy")
    return _question(
        "sentiment",
        label=label,
        feeling=feeling,
        subject=_word(random, "subjects"),
        place=_word(random, "places"),
        quality=_word(random, "good" if good else "bad"),
        ending=_word(random, "good_ends" if good else "bad_ends"),
    )


def topic(random: np.random.Generator) -> Question:
    """Sample a question: name the topic of a sentence."""
    subject = _one(random, TOPICS)
    actor, place = _one(random, subject.actors), _one(random, subject.places)
    when, action = _time(random), _one(random, subject.actions)
    return _question("topic", topic=subject.name, actor=actor, place=place, when=when, action=action)


def past_tense(random: np.random.Generator) -> Question:
    """Sample a question: change a sentence from the present to the past tense."""
    return _question("past-tense", **_moved(random))


def passive(random: np.random.Generator) -> Question:
    """Sample a question: change a sentence from the active to the passive voice."""
    return _question("passive", **_moved(random))


def polite(random: np.random.Generator) -> Question:
    """Sample a question: change a command into a polite request."""
    return _question("polite", command=f"{_one(random, VERBS).base} the {_described(random)} to the {_word(random, 'places')}")


def membership(random: np.random.Generator) -> Question:
    """Sample a question: which words of a list belong to a category?"""
    name, *others = _some(random, tuple(CATEGORIES), 3)
    members = _some(random, CATEGORIES[name], 2)
    listed = _some(random, (*members, *(_one(random, CATEGORIES[other]) for other in others)), 4)
    first, second = (word for word in listed if word in members)
    return _question("membership", name=name, listed=", ".join(listed), first=first, second=second)


def arithmetic(random: np.random.Generator) -> Question:
    """Sample a question: add, subtract or multiply two numbers written as words."""
    options = (("plus", "sum of", 20), ("minus", "difference between", 20), ("times", "product of", 6))
    sign, name, limit = _one(random, options)
    a, b = (int(number) for number in random.integers(limit + 1, size=2))
    if sign == "minus":
        a, b = max(a, b), min(a, b)
    result = NUMBERS[{"plus": a + b, "minus": a - b, "times": a * b}[sign]]
    return _question("arithmetic", x=NUMBERS[a], y=NUMBERS[b], sign=sign, name=name, result=result)


def story_sum(random: np.random.Generator) -> Question:
    """Sample a question: how many things does a person have after a gain or loss?"""
    person, other = _some(random, WORDS["people"], 2)
    things = _word(random, "countable")
    a, b = sorted(_some(random, range(2, 21), 2), reverse=True)
    gets = bool(random.integers(2)) or a - b < 2
    x, y, result = NUMBERS[a], NUMBERS[b], NUMBERS[a + b if gets else a - b]
    sign, event = ("plus", f"gets {y} more from") if gets else ("minus", f"gives {y} of them to")
    return _question("story-sum", person=person, other=other, things=things, x=x, y=y, result=result, sign=sign, event=event)


def opposite(random: np.random.Generator) -> Question:
    """Sample a question: replace the adjective of a sentence with its opposite."""
    old, new = _some(random, _one(random, OPPOSITES), 2)
    return _question("opposite", old=old, new=new, thing=_word(random, "things"), place=_word(random, "places"))


def sorting(random: np.random.Generator) -> Question:
    """Sample a question: sort words alphabetically, or numbers by size."""
    if random.integers(2):
        letters = _some(random, sorted({thing[0] for thing in WORDS["things"]}), 3)
        given = [_one(random, [thing for thing in WORDS["things"] if thing[0] == letter]) for letter in letters]
        ordered, kind, order = sorted(given), "words", "in alphabetical order"
    else:
        numbers = _some(random, range(21), 3)
        given, ordered = [NUMBERS[number] for number in numbers], [NUMBERS[number] for number in sorted(numbers)]
        kind, order = "numbers", "from smallest to largest"
    first, second, third = ordered
    return _question("sorting", given=", ".join(given), kind=kind, order=order, first=first, second=second, third=third)


def comparison(random: np.random.Generator) -> Question:
    """Sample a question: is a statement that compares two things true?"""
    scale, person = _one(random, SCALES), _word(random, "people")
    less, more = (Phrase(scale.things[index]).a for index in sorted(_some(random, range(len(scale.things)), 2)))
    facts = (f"{more} is {scale.more} than {less}", f"{less} is {scale.less} than {more}")
    lies = (f"{more} is {scale.less} than {less}", f"{less} is {scale.more} than {more}")
    # `about` selects one of the two statements; `right` is whether this statement is true.
    about, right = int(random.integers(2)), bool(random.integers(2))
    yes, verdict = ("Yes", "right") if right else ("No", "wrong")
    said, fact = (facts if right else lies)[about], facts[about]
    return _question("comparison", person=person, said=said, yes=yes, verdict=verdict, fact=fact)


def scene(random: np.random.Generator) -> Question:
    """Sample a question: write a sentence that contains three given words."""
    animal, place = _one(random, CATEGORIES["animals"]), _word(random, "places")
    return _question("scene", animal=animal, place=place, thing=_described(random))


_TASKS = (
    *(extraction, sentiment, topic, past_tense, passive, polite, membership),
    *(arithmetic, story_sum, opposite, sorting, comparison, scene),
)
KINDS: Mapping[str, Callable[[np.random.Generator], Question]] = {task.__name__.replace("_", "-"): task for task in _TASKS}
"""Name of a task -> function that samples a question of this task."""


def _question(kind: str, /, **parts: str | Verb) -> Question:
    """Insert words into the templates of a task, and return the question.

    Args:
        kind: Name of the task in phrasings.yaml.
        parts: Placeholder in the templates -> the word or words to insert.
    """
    filled = {name: Phrase(part) if isinstance(part, str) else part for name, part in parts.items()}
    texts = {name: text.format(**filled) for name, text in _PHRASINGS[kind].items()}
    given = texts.get("given", "")
    return Question(tuple((ask, given) for ask in texts["asks"].splitlines()), tuple(texts.get("answers", "").splitlines()))


def _one(random: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(random.integers(len(choices)))]


def _some(random: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    """Sample `count` different elements of `choices`; return them in random order."""
    return [choices[int(index)] for index in random.choice(len(choices), size=count, replace=False)]


def _word(random: np.random.Generator, name: str) -> str:
    return _one(random, WORDS[name])


def _time(random: np.random.Generator) -> str:
    return f"{_word(random, 'days')} {_word(random, 'day_parts')}"


def _described(random: np.random.Generator) -> str:
    return f"{_word(random, 'colours')} {_word(random, 'things')}"


def _moved(random: np.random.Generator) -> dict[str, str | Verb]:
    """Sample the words of a sentence in which a person moves a thing to a place.

    The result maps placeholders of the sentence templates to words.
    """
    person, verb, place = _word(random, "people"), _one(random, VERBS), _word(random, "places")
    return {"person": person, "verb": verb, "place": place, "thing": _described(random)}
