"""Detects a collapse of the student's generated text.

The checked statistics are the length of the text, its end tokens, its diversity, and the probability mass that DAC-KL keeps
(the divergence DAC-KL keeps only the classes in a predicted interval).

On-policy training can reinforce its own errors: a student that has learned to stop at once, never to stop, or to repeat itself
generates more such text to learn from, while the loss falls.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from redistill.contracts import Origin, TokenSequence
from redistill.errors import TrainingError
from redistill.records import Json
from redistill.training.guards.events import Event, ReportEvent
from redistill.training.guards.settings import GuardConfig

OWN: frozenset[Origin] = frozenset({"student", "mixture", "revised"})  # generated at this update with the student's weights
ENDED_AT_ALL = 0.2
"""The check of end tokens is disabled until the student has ended more than this fraction of its responses."""


@dataclass(frozen=True)
class TextFacts:
    """Properties of one response.

    Args:
        origin: Source of the response, such as "student".
        length: Number of targets (tokens that are learned).
        ended: Whether the last token is an end token.
        distinct: Fraction of distinct bigrams, in (0, 1]; 1 for a response without bigrams.
    """

    origin: Origin
    length: int
    ended: bool
    distinct: float


def facts_of(sequences: Iterable[TokenSequence], end_ids: Collection[int]) -> list[TextFacts]:
    """Return the properties of the response of each sequence."""
    return [
        TextFacts(text.origin, text.num_targets, text.token_ids[-1] in end_ids, distinct_bigrams(text.response_ids))
        for text in sequences
    ]


def distinct_bigrams(token_ids: Sequence[int]) -> float:
    """Compute the fraction of distinct bigrams in a response (distinct-2), in (0, 1].

    Source: Li et al. (arXiv 1510.03055).

    Example:
        >>> distinct_bigrams([1, 2, 1, 2, 1]), distinct_bigrams([7])
        (0.5, 1.0)
    """
    bigrams = list(pairwise(token_ids))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def text_metrics(texts: Sequence[TextFacts]) -> dict[str, float]:
    """Compute metrics of responses that the student generated, alone or in part.

    Returns:
        "ended", the fraction of these responses that have an end token, and "distinct_2", their mean fraction of distinct
        bigrams.  Responses of other origins, such as gold answers, are ignored.  Empty if no response is left.
    """
    own = [text for text in texts if text.origin in OWN]
    return {"ended": _mean(text.ended for text in own), "distinct_2": _mean(text.distinct for text in own)} if own else {}


class CollapseMonitor:
    """Reports an alarm when a running mean of a text statistic is below its limit.

    A limit is absolute, or relative to the gold answers or to the best value so far.  A running mean covers the last
    `collapse_window` updates with generated text; checks begin after this number of updates.  A mean that stays below its limit
    is reported once.  It is reported again only if it has been above the limit in between.

    Args:
        config: Limits, and whether an alarm ends the run.
        report_event: Function that is called with each alarm.
    """

    def __init__(self, config: GuardConfig, report_event: ReportEvent) -> None:
        self._config, self._report_event = config, report_event
        self._window: deque[dict[str, float]] = deque(maxlen=config.collapse_window)
        self._best_ended = 0.0
        self._alarms: set[str] = set()

    def observe(self, step: int, texts: Sequence[TextFacts], gold: Sequence[TextFacts], kept_mass: float | None) -> None:
        """Add the responses of one update, and check the means.

        Args:
            step: Number of the update, from 1.
            texts: Properties of the sampled sequences of all processes, of any origin.
            gold: Properties of the gold answers of all processes.
            kept_mass: Teacher probability mass of the classes that DAC-KL kept, in [0, 1]; None if it was not measured.

        Raises:
            TrainingError: there is an alarm, and `on_collapse` is "stop".
        """
        if not (own := [text for text in texts if text.origin in OWN]):
            return
        seen = {"gold_length": _mean(text.length for text in gold), "gold_distinct_2": _mean(text.distinct for text in gold)}
        kept = {} if kept_mass is None else {"kept_mass": kept_mass}
        self._window.append({"length": _mean(text.length for text in own), **text_metrics(own), **seen, **kept})
        if len(self._window) == self._config.collapse_window:
            self._check(step)

    def _check(self, step: int) -> None:
        """Report each mean that fell below its limit at this update."""
        config = self._config
        names = set.intersection(*map(set, self._window))  # kept_mass may be missing at some updates
        mean = {name: _mean(seen[name] for seen in self._window) for name in names}
        self._best_ended = max(self._best_ended, mean["ended"])
        usual = self._best_ended if self._best_ended > ENDED_AT_ALL else 0.0
        checks = {
            "length": (mean["length"], config.min_length * mean["gold_length"], "mean length in tokens"),
            "ended": (mean["ended"], config.min_ended * usual, "fraction with an end token"),
            "distinct_2": (mean["distinct_2"], config.min_distinct * mean["gold_distinct_2"], "fraction of distinct bigrams"),
        }
        if "kept_mass" in mean:
            checks["kept_mass"] = (mean["kept_mass"], config.min_kept_mass, "teacher mass kept by DAC-KL")
        low = {name: check for name, check in checks.items() if check[0] < check[1]}
        for name in sorted(low.keys() - self._alarms):
            value, least, what = low[name]
            over = f"over {len(self._window)} updates, below {least:.3g}"
            text = f"step {step}: the student's text may have collapsed: {what} is {value:.3g} {over}"
            self._report_event(Event(step, "collapse", text, {"sign": name, "value": value, "least": least}))
            if config.on_collapse == "stop":
                raise TrainingError(
                    f"{text} (guards.on_collapse = stop); resume from an earlier checkpoint with a lower learning rate or more "
                    "gold answers, or set guards.on_collapse=warn in a new folder"
                )
        self._alarms = set(low)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state to be saved in checkpoints."""
        return {"window": list(self._window), "best_ended": self._best_ended, "alarms": sorted(self._alarms)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        window = cast(list[dict[str, float]], state["window"])
        lines = ({name: float(value) for name, value in line.items()} for line in window)
        self._window = deque(lines, maxlen=self._config.collapse_window)
        self._best_ended, self._alarms = cast(float, state["best_ended"]), set(cast(list[str], state["alarms"]))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
