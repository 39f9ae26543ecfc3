"""What the suites of laws share: how a part declares which it disobeys, and how a broken one is told."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any


def disobeyed(part: object, laws: Iterable[str]) -> Mapping[str, str]:
    """The laws that a part declares to disobey, `disobeys = {"law": "reason"}` in its class, with its reasons."""
    declared: Mapping[str, str] = getattr(type(part), "disobeys", {})
    laws = list(laws)
    for law, reason in declared.items():
        demand(law in laws, part, "disobeys", f"'{law}' is no law; laws are {', '.join(laws)}")
        demand(bool(reason.strip()), part, "disobeys", f"'{law}' has no reason")
    return declared


def is_its_own_configuration(part: object) -> None:
    """A frozen dataclass: its fields are its YAML, and nobody changes them later."""
    parameters = getattr(type(part), "__dataclass_params__", None)
    frozen = is_dataclass(part) and parameters is not None and parameters.frozen
    demand(frozen, part, "is_its_own_configuration", "must be a dataclass with frozen=True")


def demand(holds: Any, part: object, law: str, found: str) -> None:
    """Raise AssertionError where a law does not hold.

    Args:
        holds: Whether it does.
        part: Whose law it is.
        law: Its name.
        found: On which input, with which numbers.
    """
    if not holds:
        raise AssertionError(f"{part!r} breaks the law {law}: {found}")
