"""What a check is, and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.records import Json

Status = Literal["passed", "found", "not examined"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A silent failure that a check has measured.

    Args:
        what: What is wrong, and where.
        measured: The measured value.
        right: What is right.
        remedy: What to do.
        is_note: A note describes something that may be intended; it does not change the exit code.
    """

    what: str
    measured: str
    right: str
    remedy: str
    is_note: bool = False

    @property
    def line(self) -> str:
        """The finding in one line."""
        return " ".join(f"{self.what}: {self.measured}; right is {self.right}; {self.remedy}".split())


class NotExamined(Exception):
    """A check does not apply, or cannot be made; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one check.

    Args:
        number: Of the check, from 1.
        name: Of the failure.
        examines: What was examined.
        findings: Failures.
        notes: Findings that may be intended.
        reason: Why it was not examined; "" if it was.
        proof: The test that proves that redistill's own code cannot fail so; "" if there is none.
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
        """Whether the check passed, found a failure, or was not made."""
        if self.findings:
            return "found"
        return "not examined" if self.reason else "passed"

    def as_json(self) -> dict[str, Json]:
        """The outcome as JSON values; each finding and note is one line."""
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
    """The first of `values`, for a message.

    Example:
        >>> some(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    more = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(str(value) for value in values[:shown]) + more


def quoted(text: str, longest: int = 40) -> str:
    """A text in quotes for a message, shortened in its middle.

    Example:
        >>> quoted("a" * 100, 9)
        "'aaaa ... aaaa'"
    """
    half = longest // 2
    return repr(text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}")


Findings = list[Finding]
Examine = Callable[..., Findings]
