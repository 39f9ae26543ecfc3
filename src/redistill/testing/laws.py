"""Shared by the suites of laws: declared exceptions, and the error that reports a violation."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any


def disobeyed(part: object, laws: Iterable[str]) -> Mapping[str, str]:
    """Laws that a divergence or policy declares not to satisfy, with the reasons.

    They are declared by the class attribute `disobeys = {"law": "reason"}`.

    Args:
        part: The divergence or policy.
        laws: Names of the laws of its kind.

    Returns:
        Law -> reason; empty without the attribute.

    Raises:
        AssertionError: the attribute contains an unknown law or an empty reason.
    """
    declared: Mapping[str, str] = getattr(type(part), "disobeys", {})
    laws = list(laws)
    for law, reason in declared.items():
        demand(law in laws, part, "disobeys", f"unknown law '{law}'; must be one of {', '.join(laws)}")
        demand(bool(reason.strip()), part, "disobeys", f"'{law}' has no reason; must not be empty")
    return declared


def is_its_own_configuration(part: object) -> None:
    """It is a frozen dataclass.

    Its fields are its configuration in YAML and must not change.
    """
    parameters = getattr(type(part), "__dataclass_params__", None)
    frozen = is_dataclass(part) and parameters is not None and parameters.frozen
    demand(frozen, part, "is_its_own_configuration", "must be a dataclass with frozen=True")


def demand(holds: Any, part: object, law: str, found: str) -> None:
    """Raise AssertionError unless `holds`.

    Args:
        holds: The checked condition.
        part: The divergence or policy under test.
        law: Name of the law.
        found: Input and values that violate the law.
    """
    if not holds:
        raise AssertionError(f"{part!r} violates the law {law}: {found}")
