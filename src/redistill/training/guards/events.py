"""Events of training, such as a loss spike; metrics.jsonl contains them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from redistill.records import Json


@dataclass(frozen=True)
class Event:
    """An event of training, such as a loss spike or an extension of the run.

    Args:
        step: Number of the update, from 1, as in metrics.jsonl.
        name: The kind of event: "not_finite", "loss_spike", "out_of_memory", "collapse", "extended" (the run was
            given more updates).
        text: One sentence.
        facts: Numbers and names that describe the event.  Non-finite numbers are logged as null, since JSON has no such
            numbers.
    """

    step: int
    name: str
    text: str
    facts: Mapping[str, object] = field(default_factory=dict)

    def line(self) -> Mapping[str, Json]:
        """Return the event as a line of metrics.jsonl.

        Example:
            >>> Event(3, "loss_spike", "step 3: a spike", {"loss": float("inf")}).line()
            {'kind': 'event', 'step': 3, 'event': 'loss_spike', 'text': 'step 3: a spike', 'loss': None}
        """
        return {"kind": "event", "step": self.step, "event": self.name, "text": self.text, **without_nan(self.facts)}


ReportEvent = Callable[[Event], None]


def without_nan(facts: Mapping[str, object]) -> Mapping[str, Json]:
    """Return `facts` as JSON values, with None for every non-finite number.

    Example:
        >>> without_nan({"loss": float("nan"), "samples": (1, 2)})
        {'loss': None, 'samples': [1, 2]}
    """
    found: Mapping[str, Json] = json.loads(json.dumps(facts), parse_constant=lambda name: None)
    return found
