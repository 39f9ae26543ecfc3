"""External components: classes and objects of other modules, named `module:Name`.

The module of a component is imported only if the user has allowed it. Therefore no external code runs when an untrusted recipe
or run.json is read.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from redistill.errors import ConfigError, one_line

Component = TypeVar("Component")

_NAME = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


@dataclass(frozen=True)
class Slot:
    """A field of a recipe that accepts external classes.

    Args:
        kind: The component that the field configures, as a word such as "divergence".
        members: The classes of redistill that the field accepts.
        needs: Names of the attributes that an external class must have.
        has_laws: Whether `redistill.testing` has a function that tests external classes for this field. The name of the
            function is "check_" followed by `kind`.
    """

    kind: str
    members: tuple[type, ...]
    needs: tuple[str, ...]
    has_laws: bool = False


@dataclass(frozen=True)
class External:
    """The external components that a recipe may use.

    Args:
        allowed: Modules that may be imported, including their submodules. If empty, no module may be imported.
        slots: The fields of a recipe that accept external classes.
    """

    allowed: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str], *slots: Slot) -> "External":
        """Return an `External` with the given modules and fields.

        Args:
            allowed: Modules that may be imported, including their submodules.
            slots: The fields of a recipe that accept external classes.
        """
        return cls(tuple(allowed), slots)

    def load(self, name: str) -> object:
        """Return the object with the name `module:Name`; import its module if necessary.

        Raises:
            ConfigError: the name does not have the form `module:Name`; its module is not allowed; its module cannot be
                imported; or the module has no such attribute.
        """
        module, path = _parts(name)
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.allowed):
            raise ConfigError(f"external code is not allowed; add --allow-code {module.partition('.')[0]}")
        if (here := str(Path.cwd())) not in sys.path:
            # The path of a console script lacks the current folder. It is appended, so that its modules shadow no library.
            sys.path.append(here)
        try:
            import_module(module)
        except Exception as error:  # external code may raise anything
            remedy = "correct the module, or start redistill in its folder"
            raise ConfigError(f"the module cannot be imported ({one_line(error)}); {remedy}") from error
        found = loaded(name)
        if found is None:
            raise ConfigError(f"module {module} has no {path}; use the name of an attribute of the module")
        return found

    def component(self, kind: str, members: Iterable[type]) -> type:
        """Check the external class that a field of a recipe names, and return the class.

        Args:
            kind: Value of the key `kind` in the recipe: the name of the class in the form `module:Name`. The module is imported
                if necessary.
            members: The classes of redistill that the field accepts.

        Raises:
            ConfigError: the field accepts no external classes; the class cannot be loaded (see `load`); the class is not a
                frozen dataclass; or the class lacks an attribute that the field requires.
        """
        slot = next((slot for slot in self.slots if set(slot.members) <= set(members)), None)
        if slot is None:
            slots = ", ".join(slot.kind for slot in self.slots)
            accepted = f"accepted only for {slots}" if slots else "not accepted"
            raise ConfigError(f"external classes are {accepted}; use a kind that redistill defines")
        found = self.load(kind)
        remedy = f"test it with redistill.testing.check_{slot.kind}" if slot.has_laws else "see docs/adding.md"
        named = f"{'an' if slot.kind[0] in 'aeiou' else 'a'} {slot.kind}"
        params = getattr(found, "__dataclass_params__", None)
        if not isinstance(found, type) or params is None or not params.frozen:
            raise ConfigError(f"is not a frozen dataclass, which {named} must be; {remedy}")
        if missing := [need for need in slot.needs if not _has(found, need)]:
            raise ConfigError(f"has no {' and no '.join(missing)}, which {named} must have; {remedy}")
        return found


def instance(name: str, expected: type[Component]) -> Component:
    """Return the object with the name `module:NAME` from an imported module.

    The function imports no module, so it runs no external code. The module must be imported already.

    Raises:
        ConfigError: the module is not imported, or the object is not an instance of `expected`.
    """
    found = loaded(name)
    if found is None:
        module = name.partition(":")[0]
        raise ConfigError(f"not imported; add --allow-code {module}, or import {module} first in Python")
    if not isinstance(found, expected):
        raise ConfigError(f"has the type {type(found).__name__}; must be a {expected.__module__}.{expected.__name__}")
    return found


def name_of(cls: type) -> str:
    """Return the name of an external class in the form `module:Name`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def loaded(name: str) -> object:
    """Return the object with the name `module:Name`, without importing its module.

    The result is None if the module has not been imported or has no such attribute.

    Raises:
        ConfigError: the name does not have the form `module:Name`.
    """
    module, path = _parts(name)
    found: object = sys.modules.get(module)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    return found


def _parts(name: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise ConfigError("the name of an external component must have the form module:Name")
    module, _, path = name.partition(":")
    return module, path


def _has(cls: type, attribute: str) -> bool:
    """Return whether instances of the dataclass `cls` have the attribute `attribute`.

    `hasattr` is not sufficient: `hasattr(cls, "__call__")` is always true, since classes are callable.
    """
    return any(attribute in vars(base) for base in cls.__mro__) or attribute in {f.name for f in fields(cls)}
