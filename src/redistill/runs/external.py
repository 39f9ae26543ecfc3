"""Builds external components of a run, and checks their methods.

An external component is an object whose class is named in a recipe and is not part of redistill.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from redistill.errors import ConfigError, RedistillError, one_line

ENGINE = ("sync", "generate")
TEACHER = ("prepare", "rows", "faults", "release")
SOURCE = ("sequences", "observe", "metrics", "state_dict", "load_state_dict")
DECLARED = {"generates": "generate", "prefix_memory": "remembering"}
"""For each declared capability, the method that a component with this capability must have."""

Built = TypeVar("Built")


def built(where: str, build: Callable[[], Built], methods: Sequence[str], capabilities: object = None) -> Built:
    """Build an external component of a recipe, and check it.

    Args:
        where: Field of the recipe that names the class, for error messages, such as "engine.kind = my_engine:FixedText".
        build: Function that builds the component.
        methods: Names of the methods that the component must have.
        capabilities: The optional features that the class declares.  The attribute `capabilities` of the component must be
            equal to this argument.  The feature `generates` requires a method `generate`, and `prefix_memory` requires
            `remembering`.  If None, capabilities are not checked.

    Returns:
        The component that `build` returned.

    Raises:
        ConfigError: `build` raised an exception, the component lacks a method, or the capabilities differ.
    """
    try:
        found = build()
    except RedistillError:
        raise
    except Exception as error:  # whatever external code raises
        raise ConfigError(f"{where}: cannot be built ({one_line(error)}); docs/adding.md has an example") from error
    methods = [*methods, *(method for flag, method in DECLARED.items() if getattr(capabilities, flag, False))]
    if missing := [name for name in methods if not callable(getattr(found, name, None))]:
        raise ConfigError(f"{where}: the built {type(found).__name__} has no {' and no '.join(missing)}; add these methods")
    if capabilities is not None and getattr(found, "capabilities", None) != capabilities:
        raise ConfigError(
            f"{where}: the built {type(found).__name__} has other capabilities than the class declares; set its attribute "
            "`capabilities` to the value that the class declares"
        )
    return found
