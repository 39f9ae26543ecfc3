"""External components of a run, and the methods that they must have."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from redistill.errors import ConfigError, RedistillError

ENGINE = ("sync", "generate")
TEACHER = ("prepare", "rows", "faults", "release")
SOURCE = ("sequences", "observe", "metrics", "state_dict", "load_state_dict")
DECLARED = {"generates": "generate", "prefix_memory": "remembering"}
"""Flag of a declaration of capabilities -> the method that a component with this flag must have."""

Built = TypeVar("Built")


def built(where: str, build: Callable[[], Built], methods: Sequence[str], capabilities: object = None) -> Built:
    """What an external node builds.

    Args:
        where: The node in the recipe, such as "engine.kind = my_engine:FixedText".
        build: Builds it.
        methods: The methods that it must have, besides those of its capabilities.
        capabilities: What the node declares; the built object must declare the same. None checks nothing.

    Raises:
        ConfigError: building failed, a method is missing, or the capabilities differ.
    """
    try:
        found = build()
    except RedistillError:
        raise
    except Exception as error:  # whatever external code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}: cannot be built ({reason}); docs/adding.md shows one") from error
    methods = [*methods, *(method for flag, method in DECLARED.items() if getattr(capabilities, flag, False))]
    if missing := [name for name in methods if not callable(getattr(found, name, None))]:
        raise ConfigError(f"{where}: the {type(found).__name__} that it builds has no {' and no '.join(missing)}; add it")
    if capabilities is not None and getattr(found, "capabilities", None) != capabilities:
        raise ConfigError(f"{where}: the {type(found).__name__} that it builds has other capabilities than it declares")
    return found
