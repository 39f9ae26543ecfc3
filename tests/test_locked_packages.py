"""requirements-dev.lock has every requirement of pyproject.toml with version and hash, and nothing specific to a machine."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
ENTRIES = [entry for entry in re.split(r"\n(?=[\w#])", LOCK) if not entry.startswith("#")]
PINS = [Requirement(entry.partition("\\\n")[0]) for entry in ENTRIES]


def required() -> list[Requirement]:
    """The requirements of the package and its development extra, with nested extras expanded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, found = [*project["dependencies"], "redistill[dev]"], []
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == "redistill":
            waiting += [text for extra in requirement.extras for text in project["optional-dependencies"][extra]]
        elif requirement.name != "torch":  # its build depends on the machine
            found.append(requirement)
    return found


@pytest.mark.parametrize("requirement", sorted(required(), key=str), ids=lambda requirement: requirement.name)
def test_a_requirement_is_locked_in_a_matching_version(requirement: Requirement) -> None:
    versions = [pin.specifier for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    assert versions
    assert all(requirement.specifier.contains(str(version).removeprefix("==")) for version in versions)


def test_every_package_has_one_version_for_each_machine_and_hashes() -> None:
    assert len(PINS) > 90
    for entry, pin in zip(ENTRIES, PINS, strict=True):
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)) and pin.url is None, pin
        assert re.search(r"\n    --hash=sha256:[0-9a-f]{64}\b", entry), pin
    apart = [(pin.name, str(pin.marker)) for pin in PINS]
    assert len(set(apart)) == len(apart)


def test_the_lock_file_has_nothing_specific_to_a_machine() -> None:
    assert not [pin.name for pin in PINS if re.match(r"torch|triton|nvidia|cuda", pin.name)]
    assert not re.search(r"\+cpu|file:|https?:|--(?:extra-)?index-url|--find-links|^-", LOCK, re.MULTILINE)
