"""The result of a check: an outcome with findings and notes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.records import Json

Status = Literal["passed", "found", "not examined"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A silent failure that a check has found.

    Args:
        what: The failure, and the row, model or setting in which it was found.
        measured: The measured value.
        right: The expected value.
        remedy: The action that fixes the failure.
        is_note: Whether the finding may be intended by the user. Such a finding is called a note, and does not change the exit
            code of the command.
    """

    what: str
    measured: str
    right: str
    remedy: str
    is_note: bool = False

    @property
    def line(self) -> str:
        """The finding as text in one line."""
        return " ".join(f"{self.what}: {self.measured}; expected {self.right}; {self.remedy}".split())


class NotExamined(Exception):
    """Raised by a check that does not apply to the recipe or cannot be completed.

    The message states the reason.
    """


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one check.

    Args:
        number: Number of the check, from 1.
        name: Short description of the failure that the check looks for.
        examines: The data, settings or tensors that the check examines.
        findings: Failures that were found.
        notes: Findings that may be intended by the user.
        reason: Reason why the check could not be completed; "" if it was completed.
        proof: Name of the test (path::function) which shows that redistill's own code cannot cause this failure; "" if there
            is no such test.
    """

    number: int
    name: str
    examines: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    reason: str = ""
    proof: str = ""

    @property
    def status(self) -> Status:
        """Status of the check.

        The status is "found" if there are findings. Without findings, it is "not examined" if `reason` is set, and otherwise
        "passed".
        """
        if self.findings:
            return "found"
        return "not examined" if self.reason else "passed"

    def as_json(self) -> dict[str, Json]:
        """Return the outcome as JSON values; each finding and note is one line of text."""
        return {
            "number": self.number,
            "name": self.name,
            "examines": self.examines,
            "status": self.status,
            "reason": self.reason or None,
            "findings": [finding.line for finding in self.findings],
            "notes": [note.line for note in self.notes],
            "impossible_by_construction": self.proof or None,
        }


def some(values: Sequence[object], shown: int = 3) -> str:
    """List the first `shown` values for a message, and state how many are left out.

    Example:
        >>> some(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    more = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(str(value) for value in values[:shown]) + more


def quoted(text: str, longest: int = 40) -> str:
    """Quote a text for a message; " ... " replaces the middle of a long text.

    Example:
        >>> quoted("a" * 100, 9)
        "'aaaa ... aaaa'"
    """
    half = longest // 2
    return repr(text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}")


Findings = list[Finding]
Examine = Callable[..., Findings]
