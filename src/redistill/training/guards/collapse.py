"""Whether what the student writes for training is still text: its length, its ends, its variety, and DAC-KL's kept mass.

On-policy training can feed on itself: a student that has learned to stop at once, or never to stop, or to repeat itself writes
more of the same to learn from, while the loss falls.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from redistill.contracts import Origin, TokenSequence
from redistill.errors import TrainingError
from redistill.training.guards.events import Event, Tell
from redistill.training.guards.settings import GuardConfig

OWN: frozenset[Origin] = frozenset({"student", "mixture", "revised"})  # written at this update, by the student or with it
ENDED_AT_ALL = 0.2
"""A student that never ended more than this share of its texts by itself has no habit to lose."""


@dataclass(frozen=True)
class TextFacts:
    """What is looked at of one response.

    Args:
        origin: Where it came from.
        length: Its targets, in tokens.
        ended: Whether its last token ends a response.
        distinct: Share of distinct ones among its bigrams, in (0, 1]; 1 where it has none.
    """

    origin: Origin
    length: int
    ended: bool
    distinct: float


def facts_of(sequences: Iterable[TokenSequence], end_ids: Collection[int]) -> list[TextFacts]:
    """The facts of each sequence's response."""
    return [
        TextFacts(
            origin=sequence.origin,
            length=sequence.num_targets,
            ended=sequence.token_ids[-1] in end_ids,
            distinct=distinct_bigrams(sequence.response_ids),
        )
        for sequence in sequences
    ]


def distinct_bigrams(token_ids: Sequence[int]) -> float:
    """Share of distinct ones among the bigrams, in (0, 1]; distinct-2 of Li et al. (arXiv 1510.03055) in one response.

    Example:
        >>> distinct_bigrams([1, 2, 1, 2, 1]), distinct_bigrams([7])
        (0.5, 1.0)
    """
    bigrams = list(pairwise(token_ids))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def text_metrics(texts: Sequence[TextFacts]) -> dict[str, float]:
    """What is logged of the student's own text among `texts`; nothing where there is none.

    Returns:
        "ended", the share of responses that end by themselves, and "distinct_2", the mean share of distinct bigrams.
    """
    own = [text for text in texts if text.origin in OWN]
    return {"ended": _mean(text.ended for text in own), "distinct_2": _mean(text.distinct for text in own)} if own else {}


class CollapseMonitor:
    """Compares running means of the student's text with the gold answers', and tells when they leave their range.

    A mean is over the last `collapse_window` updates that have text of the student's own, and is judged once there are so
    many.  Each alarm is told once, and again only after its mean has been in range in between.

    Args:
        config: Thresholds, and whether an alarm ends the run.
        tell: Told each alarm.
    """

    def __init__(self, config: GuardConfig, tell: Tell) -> None:
        self._config, self._tell = config, tell
        self._window: deque[dict[str, float]] = deque(maxlen=config.collapse_window)
        self._best_ended = 0.0
        self._alarms: set[str] = set()

    def observe(self, step: int, texts: Sequence[TextFacts], gold: Sequence[TextFacts], kept_mass: float | None) -> None:
        """Hear of an update.

        Args:
            step: Number of the update, from 1.
            texts: Of all processes' sampled sequences, whatever their origin.
            gold: Of all processes' gold answers.
            kept_mass: What DAC-KL kept of the teacher, or None.

        Raises:
            TrainingError: there is an alarm, and `on_collapse` is "stop".
        """
        own = [text for text in texts if text.origin in OWN]
        if not own:
            return
        seen = {"length": _mean(text.length for text in own), **text_metrics(own)}
        seen |= {
            "gold_length": _mean(text.length for text in gold),
            "gold_distinct_2": _mean(text.distinct for text in gold),
        }
        if kept_mass is not None:
            seen["kept_mass"] = kept_mass
        self._window.append(seen)
        if len(self._window) == self._config.collapse_window:
            self._judge(step)

    def _judge(self, step: int) -> None:
        """Tell what has left its range since the update before."""
        config = self._config
        names = set.intersection(*map(set, self._window))  # kept_mass is not in all, where texts are of many kinds
        mean = {name: _mean(seen[name] for seen in self._window) for name in names}
        self._best_ended = max(self._best_ended, mean["ended"])
        usual = self._best_ended if self._best_ended > ENDED_AT_ALL else 0.0
        checks = {
            "length": (mean["length"], config.min_length * mean["gold_length"], "mean length in tokens"),
            "ended": (mean["ended"], config.min_ended * usual, "share that ends by itself"),
            "distinct_2": (mean["distinct_2"], config.min_distinct * mean["gold_distinct_2"], "share of distinct bigrams"),
        }
        if "kept_mass" in mean:
            checks["kept_mass"] = (mean["kept_mass"], config.min_kept_mass, "mass of the teacher that DAC-KL keeps")
        low = {name: check for name, check in checks.items() if check[0] < check[1]}
        for name in sorted(low.keys() - self._alarms):
            self._alarm(step, name, *low[name])
        self._alarms = set(low)

    def _alarm(self, step: int, name: str, value: float, least: float, what: str) -> None:
        text = (
            f"step {step}: the student's text may have collapsed: {what} is {value:.3g} over {len(self._window)} updates, "
            f"below {least:.3g}"
        )
        self._tell(Event(step, "collapse", text, {"sign": name, "value": value, "least": least}))
        if self._config.on_collapse == "stop":
            raise TrainingError(
                f"{text} (guards.on_collapse = stop); resume from an earlier checkpoint with a lower learning rate or more "
                "gold answers, or let the run go on with guards.on_collapse=warn in a new folder"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self._window), "best_ended": self._best_ended, "alarms": sorted(self._alarms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._window = deque(state["window"], maxlen=self._config.collapse_window)
        self._best_ended, self._alarms = state["best_ended"], set(state["alarms"])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
