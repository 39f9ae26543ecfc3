"""Parts from outside the package, named `module:Name`: imported only where the user has allowed that module's code to run.

A recipe, or a run.json that came by mail, so runs nobody's code by being read.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from redistill.errors import ConfigError

_NAME = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


@dataclass(frozen=True)
class Slot:
    """A place in the configuration that a class from outside may take.

    Args:
        what: What such a class is, such as "divergence".
        members: The package's own classes there.
        needs: What a class must have to work there.
        has_laws: Whether `redistill.testing` has laws for it.
    """

    what: str
    members: tuple[type, ...]
    needs: tuple[str, ...]
    has_laws: bool = False

    @property
    def name(self) -> str:
        """`what` with its article."""
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"


@dataclass(frozen=True)
class Outside:
    """What may come from outside: nothing, unless modules are allowed.

    Args:
        allowed: Modules whose code may run, with everything below them.
        slots: Where a class may come from outside.
    """

    allowed: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str], *slots: Slot) -> "Outside":
        """With these modules allowed, and these slots open to them."""
        return cls(tuple(allowed), slots)

    def load(self, name: str) -> Any:
        """What `name` stands for; its module is imported if it is not yet.

        Raises:
            ConfigError: no name of the form module:Name, a module that is not allowed or cannot be imported, or nothing there.
        """
        module, path = _parts(name)
        if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in self.allowed):
            raise ConfigError(f"code from outside is not run; add --allow-code {module.partition('.')[0]}")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # a console script's path lacks it; last, so that nothing there stands in for a library
        try:
            import_module(module)
        except Exception as error:  # whatever its code does wrong
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"the module cannot be imported ({told}); mend it, or run where it can be found") from error
        found = loaded(name)
        if found is None:
            raise ConfigError(f"module {module} has no {path}; give the name of what stands in it")
        return found

    def part(self, kind: str, members: Iterable[type]) -> type:
        """The class `kind`, where one of `members` is expected.

        Raises:
            ConfigError: as `load`; or a class that cannot take that place.
        """
        slot = next((slot for slot in self.slots if set(slot.members) <= set(members)), None)
        if slot is None:
            slots = ", ".join(slot.what for slot in self.slots) or "none of its fields"
            raise ConfigError(f"nothing from outside can stand here; outside kinds are for {slots}")
        found = self.load(kind)
        advice = f"redistill.testing.check_{slot.what} tries one" if slot.has_laws else "docs/adding.md shows one"
        if not (isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen):  # type: ignore[attr-defined]
            raise ConfigError(f"is no frozen dataclass, as {slot.name} must be; {advice}")
        if missing := [need for need in slot.needs if not _has(found, need)]:
            raise ConfigError(f"has no {' and no '.join(missing)}, as {slot.name} must; {advice}")
        return found


def name_of(cls: type) -> str:
    """The name by which a class from outside is found again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def loaded(name: str) -> Any:
    """What `name` stands for where its module has been imported already, else None; runs nothing."""
    module, path = _parts(name)
    found: Any = sys.modules.get(module)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    return found


def _parts(name: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise ConfigError("a part from outside has the form module:Name")
    module, _, path = name.partition(":")
    return module, path


def _has(cls: type, attribute: str) -> bool:
    """Whether instances have it; a class itself can always be called, so `hasattr` would not tell."""
    return any(attribute in vars(base) for base in cls.__mro__) or attribute in {f.name for f in fields(cls)}
