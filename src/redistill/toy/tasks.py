"""The tasks of the toy world: each kind samples its content and generates every phrasing of the question and of the answer.

All phrasings of a question are equivalent, and so are all phrasings of an answer.  Each phrasing of a question states all of
the content, so that a prompt is unambiguous.  The first phrasing of an answer is the most frequent in the data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from redistill.toy import words

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question: its phrasings as (instruction, input), and all correct answers."""

    asks: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]


def extraction(random: np.random.Generator) -> Question:
    """Extract who, what, where or when from a passage of two sentences."""
    verb, thing = _one(random, words.VERBS), _one(random, words.THINGS)
    person, other = _some(random, words.PEOPLE, 2)
    place, elsewhere = _some(random, words.PLACES, 2)
    coloured = _a(f"{_one(random, words.COLOURS)} {thing}")
    when = f"{_one(random, words.DAYS)} {_one(random, words.DAY_PARTS)}"
    answers = {
        f"Who {verb.past} the {thing}?": (
            f"{person} {verb.past} the {thing} to the {place}.",
            f"It was {person} who {verb.past} the {thing}.",
            f"The person who {verb.past} the {thing} was {person}.",
            f"According to the passage, {person} {verb.past} the {thing}.",
        ),
        f"What did {person} {verb.base} to the {place}?": (
            f"{person} {verb.past} {coloured} to the {place}.",
            f"It was {coloured} that {person} {verb.past} to the {place}.",
            f"According to the passage, {person} {verb.past} {coloured}.",
            f"{_capital(coloured)} was {verb.participle} to the {place}.",
        ),
        f"Where did {person} {verb.base} the {thing}?": (
            f"{person} {verb.past} the {thing} to the {place}.",
            f"The {thing} was {verb.participle} to the {place}.",
            f"The {thing} is now in the {place}.",
            f"According to the passage, {person} {verb.past} it to the {place}.",
        ),
        f"When did {person} {verb.base} the {thing}?": (
            f"{person} {verb.past} the {thing} on {when}.",
            f"The {thing} was {verb.participle} on {when}.",
            f"It happened on {when}, says the passage.",
            f"On {when}, {person} {verb.past} it to the {place}.",
        ),
    }
    question = _one(random, tuple(answers))
    return _about(
        f"On {when}, {person} {verb.past} {coloured} to the {place}. {other} waited in the {elsewhere}.",
        (
            question,
            f"Read the passage and answer: {question}",
            f"{question} Use the passage below.",
            f"Answer from the text. {question}",
        ),
        answers[question],
    )


def sentiment(random: np.random.Generator) -> Question:
    """Classify a sentence as positive or negative, and give the reason."""
    good = bool(random.integers(2))
    subject, place = _one(random, words.SUBJECTS), _one(random, words.PLACES)
    quality = _one(random, words.GOOD if good else words.BAD)
    ending = _one(random, words.GOOD_ENDS if good else words.BAD_ENDS)
    label, feeling = ("positive", "happy") if good else ("negative", "unhappy")
    return _about(
        f"The {subject} at the {place} was {quality}, and {ending}.",
        (
            "Is this sentence positive or negative?",
            "Decide whether the writer is happy or not.",
            "What is the feeling of the sentence?",
            "Classify the sentence as positive or negative.",
        ),
        (
            f"The sentence is {label}, because the {subject} was {quality}.",
            f"The writer is {feeling} with the {subject} at the {place}.",
            f"It is {label}: the {subject} was {quality}.",
            f"This is a {label} sentence about {_a(subject)} at the {place}.",
        ),
    )


def topic(random: np.random.Generator) -> Question:
    """Name the topic of a sentence."""
    subject = _one(random, words.TOPICS)
    actor, place = _one(random, subject.actors), _one(random, subject.places)
    when = f"on {_one(random, words.DAYS)} {_one(random, words.DAY_PARTS)}"
    return _about(
        f"The {actor} {_one(random, subject.actions)} in the {place} {when}.",
        (
            "What is the topic of this sentence?",
            "Name the topic of the sentence below.",
            "Which subject does the sentence belong to?",
            "What is the sentence about?",
        ),
        (
            f"The sentence is about {subject.name}.",
            f"The topic is {subject.name}, because it is about {_a(actor)} in the {place}.",
            f"It belongs to the subject of {subject.name}.",
            f"Its topic is {subject.name}, as the word {actor} shows.",
        ),
    )


def past_tense(random: np.random.Generator) -> Question:
    """Change a sentence from the present to the past tense."""
    person, verb, place = _one(random, words.PEOPLE), _one(random, words.VERBS), _one(random, words.PLACES)
    rest = f"{_a(_described(random))} to the {place}."
    past = f"{person} {verb.past} {rest}"
    return _about(
        f"{person} {verb.third} {rest}",
        (
            "Rewrite the sentence in the past tense.",
            "Put this sentence into the past.",
            "Change the verb to the past tense.",
            "Tell it as if it happened yesterday.",
        ),
        (past, f"In the past tense: {past}", f"The sentence becomes: {past}", f"Yesterday, {past}"),
    )


def passive(random: np.random.Generator) -> Question:
    """Change a sentence from active to passive."""
    person, verb, place = _one(random, words.PEOPLE), _one(random, words.VERBS), _one(random, words.PLACES)
    thing = _described(random)
    turned = f"The {thing} was {verb.participle} to the {place} by {person}."
    return _about(
        f"{person} {verb.past} the {thing} to the {place}.",
        (
            "Rewrite the sentence in the passive.",
            "Turn this into a passive sentence.",
            f"Begin the sentence with the {thing}.",
            "Use the passive voice instead.",
        ),
        (
            turned,
            f"The {thing} was {verb.participle} by {person} to the {place}.",
            f"In the passive: {turned}",
            f"The sentence becomes: {turned}",
        ),
    )


def polite(random: np.random.Generator) -> Question:
    """Change a command into a polite request."""
    command = f"{_one(random, words.VERBS).base} the {_described(random)} to the {_one(random, words.PLACES)}"
    return _about(
        f"{_capital(command)}.",
        (
            "Make this sentence more polite.",
            "Rewrite the command as a polite request.",
            "How would a polite person say this?",
            "Ask for the same thing politely.",
        ),
        (
            f"Could you please {command}?",
            f"Would you be so kind as to {command}?",
            f"Please {command}, if you have time.",
            f"I would be glad if you could {command}.",
        ),
    )


def membership(random: np.random.Generator) -> Question:
    """Find the words of a list that belong to a category."""
    names = tuple(words.CATEGORIES)
    name, *others = _some(random, names, 3)
    first, second = _some(random, words.CATEGORIES[name], 2)
    listed = _some(random, (first, second, *(_one(random, words.CATEGORIES[other]) for other in others)), 4)
    first, second = (word for word in listed if word in (first, second))
    return _about(
        ", ".join(listed),
        (
            f"Which of these words are {name}?",
            f"Find the {name} in the list.",
            f"List the {name} that you see below.",
            f"Pick out all the {name}.",
        ),
        (
            f"The {name} are the {first} and the {second}.",
            f"The {first} and the {second} are {name}.",
            f"There are two {name} in the list: {first} and {second}.",
            f"Of these words, {first} and {second} are {name}.",
        ),
    )


def arithmetic(random: np.random.Generator) -> Question:
    """Calculate a sum, difference or product of small numbers, in words."""
    sign, name, limit = _one(random, (("plus", "sum", 20), ("minus", "difference", 20), ("times", "product", 6)))
    a, b = (int(number) for number in random.integers(limit + 1, size=2))
    if sign == "minus":
        a, b = max(a, b), min(a, b)
    result = words.NUMBERS[{"plus": a + b, "minus": a - b, "times": a * b}[sign]]
    x, y = words.NUMBERS[a], words.NUMBERS[b]
    between = "between" if sign == "minus" else "of"
    return Question(
        tuple(
            (ask, "")
            for ask in (
                f"What is {x} {sign} {y}?",
                f"How much is {x} {sign} {y}?",
                f"Calculate {x} {sign} {y}.",
                f"Tell me the {name} {between} {x} and {y}.",
            )
        ),
        (
            f"{_capital(x)} {sign} {y} equals {result}.",
            f"The {name} {between} {x} and {y} is {result}.",
            f"The answer is {result}, because {x} {sign} {y} is {result}.",
            f"The result of {x} {sign} {y} is {result}.",
        ),
    )


def story_sum(random: np.random.Generator) -> Question:
    """Calculate how many things a person has after getting or giving some."""
    person, other = _some(random, words.PEOPLE, 2)
    things = _one(random, words.COUNTABLE)
    a, b = sorted((int(number) for number in random.choice(np.arange(2, 21), size=2, replace=False)), reverse=True)
    gets = bool(random.integers(2)) or a - b < 2
    x, y, result = words.NUMBERS[a], words.NUMBERS[b], words.NUMBERS[a + b if gets else a - b]
    sign, event = ("plus", f"gets {y} more from") if gets else ("minus", f"gives {y} of them to")
    return _about(
        f"{person} has {x} {things} and {event} {other}.",
        (
            f"How many {things} does {person} have now?",
            f"Count the {things} that {person} has in the end.",
            f"What number of {things} does {person} have?",
            f"Read the story. How many {things} are with {person}?",
        ),
        (
            f"{person} now has {result} {things}.",
            f"{person} has {result} {things}, because {x} {sign} {y} is {result}.",
            f"In the end, {person} has {result} {things}.",
            f"The answer is {result} {things}, since {x} {sign} {y} equals {result}.",
        ),
    )


def opposite(random: np.random.Generator) -> Question:
    """Replace the adjective of a sentence with its opposite."""
    old, new = _some(random, _one(random, words.OPPOSITES), 2)
    thing, place = _one(random, words.THINGS), _one(random, words.PLACES)
    turned = f"The {new} {thing} is in the {place}."
    return _about(
        f"The {old} {thing} is in the {place}.",
        (
            "Replace the describing word with its opposite.",
            f"Rewrite the sentence with the opposite of {old}.",
            "Say the opposite about the thing in the sentence.",
            "Swap the adjective for its opposite.",
        ),
        (
            turned,
            f"The opposite of {old} is {new}: {turned}",
            f"With the opposite word: {turned}",
            f"There is {_a(new)} {thing} in the {place}.",
        ),
    )


def sorting(random: np.random.Generator) -> Question:
    """Sort words alphabetically, or numbers from smallest to largest."""
    if random.integers(2):
        letters = _some(random, tuple(sorted({thing[0] for thing in words.THINGS})), 3)
        given = tuple(_one(random, tuple(t for t in words.THINGS if t[0] == letter)) for letter in letters)
        ordered, kind, order = sorted(given), "words", "in alphabetical order"
    else:
        numbers = random.choice(21, size=3, replace=False)
        given = tuple(words.NUMBERS[number] for number in numbers)
        ordered, kind, order = [words.NUMBERS[number] for number in sorted(numbers)], "numbers", "from smallest to largest"
    line = f"{ordered[0]}, {ordered[1]} and {ordered[2]}"
    return _about(
        ", ".join(given),
        (
            f"Sort these {kind} {order}.",
            f"Put the {kind} {order}.",
            f"Write the {kind} {order}.",
            f"What are these {kind} {order}?",
        ),
        (
            f"{_capital(order)}, the {kind} are {line}.",
            f"The {kind} {order} are {line}.",
            f"The right order is {line}.",
            f"First comes {ordered[0]}, then {ordered[1]}, and last {ordered[2]}.",
        ),
    )


def comparison(random: np.random.Generator) -> Question:
    """Decide whether a comparison of two things is correct."""
    scale, person = _one(random, words.SCALES), _one(random, words.PEOPLE)
    less, more = (scale.things[int(index)] for index in sorted(random.choice(len(scale.things), size=2, replace=False)))
    facts = (f"{_a(more)} is {scale.more} than {_a(less)}", f"{_a(less)} is {scale.less} than {_a(more)}")
    lies = (f"{_a(more)} is {scale.less} than {_a(less)}", f"{_a(less)} is {scale.more} than {_a(more)}")
    about, right = int(random.integers(2)), bool(random.integers(2))  # which of the two statements, and whether it is true
    said, fact = (facts if right else lies)[about], facts[about]
    yes, verdict = ("Yes", "right") if right else ("No", "wrong")
    return _about(
        f"{person} says that {said}.",
        (
            f"Is {person} right?",
            f"Is it true what {person} says?",
            f"Say yes or no, and why: is {person} right?",
            f"Check what {person} says.",
        ),
        (
            f"{yes}, {person} is {verdict}, because {fact}.",
            f"{yes}, because {fact}.",
            f"{person} is {verdict}: {fact}.",
            f"{yes}, that is {verdict}, since {fact}.",
        ),
    )


def scene(random: np.random.Generator) -> Question:
    """Write a sentence with three given words."""
    animal, place = _one(random, words.CATEGORIES["animals"]), _one(random, words.PLACES)
    thing = _described(random)
    given = f"{animal}, {thing}, {place}"
    return Question(
        tuple(
            (ask, "")
            for ask in (
                f"Write a sentence with these words: {given}",
                f"Describe a scene with {_a(animal)}, {_a(thing)} and {_a(place)}.",
                f"Make one sentence out of the words {given}.",
                f"Imagine {_a(animal)} and {_a(thing)} in {_a(place)}. What do you see?",
            )
        ),
        (
            f"The {animal} is sleeping under the {thing} in the {place}.",
            f"In the {place}, {_a(animal)} is sitting beside {_a(thing)}.",
            f"{_capital(_a(animal))} ran past the {thing} and into the {place}.",
            f"Near the {thing} in the {place}, there is {_a(animal)}.",
            f"I can see {_a(animal)} behind {_a(thing)} in the {place}.",
        ),
    )


KINDS: Mapping[str, Callable[[np.random.Generator], Question]] = {
    "extraction": extraction,
    "sentiment": sentiment,
    "topic": topic,
    "past-tense": past_tense,
    "passive": passive,
    "polite": polite,
    "membership": membership,
    "arithmetic": arithmetic,
    "story-sum": story_sum,
    "opposite": opposite,
    "sorting": sorting,
    "comparison": comparison,
    "scene": scene,
}


def _about(given: str, instructions: Sequence[str], answers: Sequence[str]) -> Question:
    """A question whose instructions all have the same input."""
    return Question(tuple((instruction, given) for instruction in instructions), tuple(answers))


def _one(random: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(random.integers(len(choices)))]


def _some(random: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    """`count` distinct choices, in random order."""
    return [choices[int(index)] for index in random.choice(len(choices), size=count, replace=False)]


def _described(random: np.random.Generator) -> str:
    return f"{_one(random, words.COLOURS)} {_one(random, words.THINGS)}"


def _a(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
