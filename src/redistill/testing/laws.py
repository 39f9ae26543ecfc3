"""Checks the laws of divergences and policies.

A law is a property that every divergence, or every policy, must have.  The class attribute `disobeys` of a divergence or policy
excludes laws from the check.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import TypeVar

Part = TypeVar("Part")
Findings = Iterator[tuple[bool, str]]
"""For each case: whether the law holds, and a text with the input and values."""


def suite(*laws: Callable[[Part], Findings]) -> Mapping[str, Callable[[Part], None]]:
    """Return functions that check laws, by name of the law.

    Each argument tests one law of a divergence or policy on several cases.  For each case, it yields a bool (whether the law
    holds) and a text with the input and values.  A function of the result raises an AssertionError with this text if its law is
    violated.  The result also contains the law `is_a_frozen_dataclass`.
    """
    return {law.__name__: partial(_demand, law) for law in (is_a_frozen_dataclass, *laws)}


def check(part: Part, laws: Mapping[str, Callable[[Part], None]]) -> None:
    """Check the laws (properties) of a divergence or policy.

    Laws that `part` excludes in its class attribute `disobeys` are not checked.

    Raises:
        AssertionError: a law is violated; the message names the law, the input and the values.
    """
    excused = disobeyed(part, laws)
    for name, law in laws.items():
        if name not in excused:
            law(part)


def disobeyed(part: object, laws: Collection[str]) -> Mapping[str, str]:
    """Return the laws that do not apply to a divergence or policy.

    The class attribute `disobeys = {"law": "reason"}` declares these laws.

    Args:
        part: The divergence or policy.
        laws: Names of all laws of divergences, or of all laws of policies.

    Returns:
        A mapping from the name of each of these laws to the reason; empty if the attribute is missing.

    Raises:
        AssertionError: the attribute contains an unknown law or an empty reason.
    """
    declared: Mapping[str, str] = getattr(type(part), "disobeys", {})
    for law, reason in declared.items():
        if law not in laws:
            raise _violation(part, "disobeys", f"unknown law '{law}'; must be one of {', '.join(laws)}")
        if not reason.strip():
            raise _violation(part, "disobeys", f"'{law}' has no reason; state why the law does not hold")
    return declared


def is_a_frozen_dataclass(part: object) -> Findings:
    """Check that the divergence or policy is a frozen dataclass.

    Its fields are the settings that a recipe contains.  They must not change after the recipe is read.
    """
    parameters = getattr(type(part), "__dataclass_params__", None)
    yield is_dataclass(part) and parameters is not None and parameters.frozen, "must be a dataclass with frozen=True"


def _demand(law: Callable[[Part], Findings], part: Part) -> None:
    for holds, found in law(part):
        if not holds:
            raise _violation(part, law.__name__, found)


def _violation(part: object, law: str, found: str) -> AssertionError:
    return AssertionError(f"{part!r} violates the law {law}: {found}")
