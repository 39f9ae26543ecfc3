"""Checks of attributes that external components declare, such as `capabilities`.

External components are classes of other packages that a recipe names. Their attributes are checked when a recipe is read.
"""

from typing import TypeVar

from redistill.config.decode import kind_of
from redistill.contracts import Needs, Sampling, TeacherCapabilities
from redistill.errors import ConfigError, one_line

Declared = TypeVar("Declared")


def declared(node: object, attribute: str, expected: type[Declared], where: str) -> Declared:
    """Check the type of a component's attribute, and return the attribute's value.

    Args:
        node: The settings of a policy, teacher or engine in a recipe.
        attribute: Name of an attribute that declares a property of the component, such as "capabilities".
        expected: The type that the value must have.
        where: Path of `node` in the recipe, such as "teacher".

    Raises:
        ConfigError: the value does not have the type `expected`, or reading the attribute raised an exception.
    """
    try:
        value = getattr(node, attribute)
    except Exception as error:  # external code may raise any exception
        raise ConfigError(
            f"{where}.kind = {kind_of(type(node))}: its {attribute} cannot be computed ({one_line(error)}); correct the class"
        ) from error
    if not isinstance(value, expected):
        raise ConfigError(
            f"{where}.kind = {kind_of(type(node))}: {attribute} has the type {type(value).__name__}; must be a "
            f"redistill.contracts.{expected.__name__}"
        )
    return value


def check_policy_node(node: object) -> None:
    """Check the types of the attributes `needs` and `sampling` of a policy.

    `needs` declares what the policy requires of teacher and engine; it must be a `redistill.contracts.Needs`. `sampling`
    declares how the student's text is sampled; it must be a `redistill.contracts.Sampling`, or None if no text is generated.

    Args:
        node: The settings of the policy.

    Raises:
        ConfigError: `needs` or `sampling` has a wrong type.
    """
    declared(node, "needs", Needs, "policy")
    if declared(node, "sampling", object, "policy") is not None:
        declared(node, "sampling", Sampling, "policy")


def teacher_capabilities(node: object, *, local: bool) -> TeacherCapabilities | None:
    """Return the capabilities of a recipe's teacher; None if it has no teacher.

    Args:
        node: The settings of the teacher; None if the recipe has no teacher.
        local: Whether the teacher is a model that redistill loads in this process. Only such a teacher may declare `mixture`,
            which means that tokens can be sampled from a mixture of student and teacher.

    Raises:
        ConfigError: `capabilities` has a wrong type, or a teacher that is not local declares `mixture`.
    """
    if node is None:
        return None
    found = declared(node, "capabilities", TeacherCapabilities, "teacher")
    if found.mixture and not local:
        raise ConfigError(
            f"teacher.kind = {kind_of(type(node))}: declares mixture = True, but the local engine can sample tokens from a "
            "mixture of student and teacher only if the teacher is local; set mixture to False"
        )
    return found
