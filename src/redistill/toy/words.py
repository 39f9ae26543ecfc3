"""The words of the toy world, read from words.yaml."""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Verb:
    """The forms of a verb of motion, such as carry, carries, carried, (has) carried."""

    base: str
    third: str
    past: str
    participle: str


@dataclass(frozen=True)
class Topic:
    """A topic, and the words from which sentences about it are generated."""

    name: str
    actors: list[str]
    actions: list[str]
    places: list[str]


@dataclass(frozen=True)
class Scale:
    """Things in ascending order of a property, such as size.

    Args:
        more: Comparative for a thing that is later in the order, such as "bigger".
        less: Comparative for a thing that is earlier in the order, such as "smaller".
        things: The names of the things.
    """

    more: str
    less: str
    things: list[str]


_DATA = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = {name: words for name, words in _DATA.items() if isinstance(words, list)}
"""The lists of words by name: people, days, colours, things, places, and the others of words.yaml."""
VERBS = [Verb(*forms) for forms in _DATA["verbs"]]
OPPOSITES: list[list[str]] = _DATA["opposites"]
CATEGORIES: dict[str, list[str]] = _DATA["categories"]
TOPICS = [Topic(**topic) for topic in _DATA["topics"]]
SCALES = [Scale(**scale) for scale in _DATA["scales"]]
NUMBERS: list[str] = [
    *_DATA["small_numbers"],
    *(ten if unit == 0 else f"{ten}-{_DATA['small_numbers'][unit]}" for ten in _DATA["tens"] for unit in range(10)),
][:41]
"""The words for 0 to 40."""
