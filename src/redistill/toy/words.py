"""The words of the toy world: a few hundred common words, which a vocabulary of 1,500 tokens covers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """Forms of a verb that moves an object: carry, carries, carried, has carried."""

    base: str
    third: str
    past: str
    participle: str


@dataclass(frozen=True)
class Topic:
    """The actors, actions and places of sentences about `name`."""

    name: str
    actors: tuple[str, ...]
    actions: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True)
class Scale:
    """Things in ascending order of the property that `more` and `less` compare."""

    more: str
    less: str
    things: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Victor Wendy Zoe"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
DAY_PARTS = ("morning", "afternoon", "evening")
COLOURS = _words("red blue green white black yellow brown grey")

VERBS = (
    Verb("carry", "carries", "carried", "carried"),
    Verb("bring", "brings", "brought", "brought"),
    Verb("take", "takes", "took", "taken"),
    Verb("send", "sends", "sent", "sent"),
    Verb("move", "moves", "moved", "moved"),
    Verb("push", "pushes", "pushed", "pushed"),
    Verb("pull", "pulls", "pulled", "pulled"),
    Verb("drag", "drags", "dragged", "dragged"),
    Verb("return", "returns", "returned", "returned"),
    Verb("deliver", "delivers", "delivered", "delivered"),
)

THINGS = _words(
    "basket blanket book bottle box bucket chair clock cup desk kettle ladder lamp letter map mirror parcel picture pillow "
    "plate rope suitcase table vase"
)
PLACES = _words(
    "airport bakery bank barn bridge castle church cottage factory garden harbour hospital hotel kitchen library market museum "
    "office park school station theatre tower village"
)

OPPOSITES = (
    ("big", "small"),
    ("hot", "cold"),
    ("old", "new"),
    ("heavy", "light"),
    ("clean", "dirty"),
    ("wet", "dry"),
    ("full", "empty"),
    ("long", "short"),
    ("hard", "soft"),
    ("open", "closed"),
    ("thick", "thin"),
    ("rough", "smooth"),
    ("bright", "dark"),
    ("cheap", "expensive"),
    ("strong", "weak"),
    ("wide", "narrow"),
    ("ugly", "beautiful"),
    ("safe", "dangerous"),
)

CATEGORIES = {
    "animals": _words("bear cat cow dog duck fox goat horse lion mouse rabbit sheep"),
    "fruits": _words("apple banana cherry grape lemon mango orange peach pear plum"),
    "tools": _words("axe drill hammer nail rake saw shovel wrench"),
    "clothes": _words("belt boot coat dress glove hat scarf shirt"),
    "vehicles": _words("bicycle boat bus car plane tractor train truck"),
    "instruments": _words("drum flute guitar harp piano trumpet violin"),
}
COUNTABLE = _words("apples books bottles boxes candles coins cups eggs flowers keys lemons letters pears pencils plates stones")

SUBJECTS = _words("breakfast concert dinner film lesson meeting party picnic play service show visit")
GOOD = _words("wonderful lovely excellent delightful pleasant perfect charming great")
BAD = _words("terrible awful boring horrible dreadful poor unpleasant miserable")
GOOD_ENDS = ("everybody smiled", "people stayed for hours", "the guests clapped", "we hope to come back")
BAD_ENDS = ("everybody complained", "people left early", "the guests were angry", "we will never come back")

TOPICS = (
    Topic(
        "food",
        actors=("cook", "baker", "waiter"),
        actions=("stirred the soup", "baked the bread", "served the cake"),
        places=("kitchen", "cafe"),
    ),
    Topic(
        "sport",
        actors=("player", "runner", "goalkeeper"),
        actions=("kicked the ball", "won the race", "scored a goal"),
        places=("field", "stadium"),
    ),
    Topic(
        "music",
        actors=("singer", "drummer", "pianist"),
        actions=("practised the song", "tuned the piano", "played a tune"),
        places=("theatre", "hall"),
    ),
    Topic(
        "travel",
        actors=("pilot", "tourist", "sailor"),
        actions=("packed the bags", "bought the tickets", "missed the boat"),
        places=("airport", "harbour"),
    ),
    Topic(
        "school",
        actors=("teacher", "student", "pupil"),
        actions=("explained the lesson", "wrote the test", "read the book"),
        places=("classroom", "library"),
    ),
    Topic(
        "farming",
        actors=("farmer", "shepherd", "gardener"),
        actions=("fed the cows", "planted the corn", "watched the sheep"),
        places=("barn", "meadow"),
    ),
    Topic(
        "health",
        actors=("doctor", "nurse", "dentist"),
        actions=("treated the patient", "checked the teeth", "gave the pills"),
        places=("hospital", "clinic"),
    ),
)

SCALES = (
    Scale("bigger", "smaller", _words("ant mouse rabbit fox goat lion horse elephant whale")),
    Scale("faster", "slower", _words("snail turtle bicycle car train plane rocket")),
    Scale("heavier", "lighter", _words("feather letter apple brick chair piano truck ship")),
    Scale("more expensive", "cheaper", _words("pencil cup shirt bicycle car house castle")),
)

_SMALL = _words(
    "zero one two three four five six seven eight nine ten "
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = ("twenty", "thirty", "forty")
NUMBERS = (*_SMALL, *(ten if unit == 0 else f"{ten}-{_SMALL[unit]}" for ten in _TENS for unit in range(10)))[:41]
