"""External components, named `module:Name`.

Their module is imported only if the user has allowed it. Reading an untrusted recipe or run.json therefore runs no code.
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
    """A field of the configuration that accepts external classes.

    Args:
        kind: Name of the kind of component, such as "divergence".
        members: The classes of the package that the field accepts.
        needs: Attributes that a class must have.
        has_laws: Whether `redistill.testing` has laws for the component.
    """

    kind: str
    members: tuple[type, ...]
    needs: tuple[str, ...]
    has_laws: bool = False


@dataclass(frozen=True)
class External:
    """The external components that may be used: none, unless modules are allowed.

    Args:
        allowed: Modules that may be imported, including their submodules.
        slots: The fields that accept external classes.
    """

    allowed: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str], *slots: Slot) -> "External":
        """Allow the external components of some modules, for the fields `slots`."""
        return cls(tuple(allowed), slots)

    def load(self, name: str) -> object:
        """Return the object `module:Name`; its module is imported if necessary.

        Raises:
            ConfigError: the name has another form, its module is not allowed or cannot be imported, or the module has no such
                attribute.
        """
        module, path = _parts(name)
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.allowed):
            raise ConfigError(f"external code is not allowed; add --allow-code {module.partition('.')[0]}")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # console scripts lack it; last, so that it shadows no library
        try:
            import_module(module)
        except Exception as error:  # external code may raise anything
            remedy = "correct the module, or start redistill in its folder"
            raise ConfigError(f"the module cannot be imported ({one_line(error)}); {remedy}") from error
        found = loaded(name)
        if found is None:
            raise ConfigError(f"module {module} has no {path}; use the name of an attribute of it")
        return found

    def component(self, kind: str, members: Iterable[type]) -> type:
        """Return the external class for a field that accepts the classes `members`.

        `kind` is the name of the class, `module:Name`.  The module is imported if necessary.

        Raises:
            ConfigError: as for `load`; or the field accepts no external classes, or the class is not a frozen dataclass, or
                it lacks an attribute that the field requires.
        """
        slot = next((slot for slot in self.slots if set(slot.members) <= set(members)), None)
        if slot is None:
            slots = ", ".join(slot.kind for slot in self.slots) or "no field"
            raise ConfigError(f"external classes are not accepted here, only for {slots}; use a kind of the package")
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
    """Return the object `module:NAME` of a module that is already imported.

    The function runs no external code.

    Raises:
        ConfigError: the module is not imported, or the object is not an instance of `expected`.
    """
    found = loaded(name)
    if found is None:
        module = name.partition(":")[0]
        raise ConfigError(f"not imported; add --allow-code {module}, or import {module} first in Python")
    if not isinstance(found, expected):
        raise ConfigError(f"is a {type(found).__name__}; must be a {expected.__module__}.{expected.__name__}")
    return found


def name_of(cls: type) -> str:
    """Return the name `module:Name` of an external class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def loaded(name: str) -> object:
    """Return the object `module:Name`; None if it, or its module, is not loaded.

    The function imports nothing.

    Raises:
        ConfigError: the name has another form.
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
    """Whether instances of a dataclass have the attribute.

    `hasattr` cannot tell: `hasattr(cls, "__call__")` is always true, since classes are callable.
    """
    return any(attribute in vars(base) for base in cls.__mro__) or attribute in {f.name for f in fields(cls)}
