"""Checks of what external components declare, such as their capabilities.

The checks are made when a recipe is read.
"""

from typing import TypeVar

from redistill.config.decode import kind_of
from redistill.contracts import Needs, Sampling, TeacherCapabilities
from redistill.errors import ConfigError, one_line

Declared = TypeVar("Declared")


def declared(node: object, attribute: str, expected: type[Declared], where: str) -> Declared:
    """Return an attribute of a component of a recipe, after checking its type.

    Args:
        node: A policy, teacher or engine of a recipe.
        attribute: Name of an attribute that declares a property of the component, such as "capabilities".
        expected: The type that the value must have.
        where: Path of the component in the recipe.

    Raises:
        ConfigError: the attribute has another type, or reading it raised an exception.
    """
    try:
        value = getattr(node, attribute)
    except Exception as error:  # external code may raise any exception
        raise ConfigError(
            f"{where}.kind = {kind_of(type(node))}: its {attribute} cannot be computed ({one_line(error)})"
        ) from error
    if not isinstance(value, expected):
        raise ConfigError(
            f"{where}.kind = {kind_of(type(node))}: {attribute} is a {type(value).__name__}; must be a "
            f"redistill.contracts.{expected.__name__}"
        )
    return value


def check_policy_node(node: object) -> None:
    """Check that `needs` and `sampling` of a policy node have the right types.

    Raises:
        ConfigError: `needs` or `sampling` has a wrong type.
    """
    declared(node, "needs", Needs, "policy")
    if declared(node, "sampling", object, "policy") is not None:
        declared(node, "sampling", Sampling, "policy")


def teacher_capabilities(node: object, *, local: bool) -> TeacherCapabilities | None:
    """Return the capabilities of the teacher of a recipe, or None without a teacher.

    Args:
        node: The teacher of the recipe; None if the recipe has no teacher.
        local: Whether the teacher is a model in this process; only such a teacher may declare `mixture`.

    Raises:
        ConfigError: `capabilities` has a wrong type, or a teacher that is not local declares `mixture`.
    """
    if node is None:
        return None
    found = declared(node, "capabilities", TeacherCapabilities, "teacher")
    if found.mixture and not local:
        raise ConfigError(
            f"teacher.kind = {kind_of(type(node))}: declares mixture, but the local engine can mix the student with a local "
            "teacher only; set mixture to False"
        )
    return found
