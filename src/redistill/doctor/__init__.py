"""The command `redistill doctor`: checks of this machine and of a recipe.

The checks of a recipe look for silent failures: training raises no error, but the student is worse than it could be. The checks
are listed in docs/doctor.md.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redistill.config.run import Run
from redistill.doctor.checks import CHECKS, LAST, Check
from redistill.doctor.findings import Finding, NotExamined, Outcome
from redistill.doctor.subject import Report, Subject, opened_subject
from redistill.errors import RedistillError, first_line
from redistill.records import Json

__all__ = ["Diagnosis", "examine"]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The results of all checks of one recipe.

    Args:
        outcomes: The result of each check, sorted by the number of the check.
        seconds: Duration of the checks, in seconds.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def num_findings(self) -> int:
        """Number of findings, without notes (findings that the user may intend)."""
        return sum(len(outcome.findings) for outcome in self.outcomes)

    def as_json(self) -> dict[str, Json]:
        """Return the findings, the outcomes of the checks and the duration as JSON values."""
        return {
            "findings": self.num_findings,
            "checks": [outcome.as_json() for outcome in self.outcomes],
            "seconds": round(self.seconds, 1),
        }


def examine(run: Run, report: Report = lambda phase: None, clock: Callable[[], float] = time.perf_counter) -> Diagnosis:
    """Check a recipe for silent failures, with the models and data of the recipe.

    A small sample of the data is read, the models are loaded once, and one update is computed. Nothing is written to the
    recipe's output folder, and no weight file is changed.

    Args:
        run: The recipe.
        report: Function that is called with the name of each phase when it starts.
        clock: Function that returns the time of a monotonic clock, in seconds.

    Raises:
        ConfigError, DataError, ModelError: the recipe cannot be run; `redistill run` raises the same error.
    """
    started = clock()
    with tempfile.TemporaryDirectory() as folder, opened_subject(run, Path(folder), report) as subject:
        outcomes = []
        for check in sorted(CHECKS, key=lambda check: LAST.index(check.number) if check.number in LAST else -1):
            report(f"check {check.number}: {check.name}")
            outcomes.append(outcome_of(check, subject))
    return Diagnosis(outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.number)), seconds=clock() - started)


def outcome_of(check: Check, subject: Subject) -> Outcome:
    """Run one check of a recipe, and return the result of the check.

    If the check raises NotExamined, the result has the status "not examined". For example, the check may not apply to the
    recipe. If a model, the data or external code raises another error, the error becomes a finding.
    """
    found, reason = [], ""
    try:
        found = check.find(subject)
    except NotExamined as error:
        reason = str(error)
    except (RedistillError, RuntimeError, ValueError, AssertionError) as error:  # a fault of models, data or external code
        found = [
            Finding(
                what="the check ended with an error",
                measured=f"{type(error).__name__}: {first_line(error)}",
                right="no error",
                remedy="fix the other findings first; if this finding remains, run the recipe to see the whole error",
            )
        ]
    return Outcome(
        number=check.number,
        name=check.name,
        examines=check.examines,
        findings=tuple(finding for finding in found if not finding.is_note),
        notes=tuple(finding for finding in found if finding.is_note),
        reason=reason,
        proof=check.proof,
    )
