"""requirements-dev.lock holds what pyproject.toml asks for, each package by version and hash, and nothing of one machine's."""

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


def asked() -> list[Requirement]:
    """What the package and its development extra ask for, an extra of its own unfolded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting, found = [*project["dependencies"], "redistill[dev]"], []
    while waiting:
        wanted = Requirement(waiting.pop())
        if wanted.name == "redistill":
            waiting += [text for extra in wanted.extras for text in project["optional-dependencies"][extra]]
        elif wanted.name != "torch":  # its build is the machine's own matter
            found.append(wanted)
    return found


@pytest.mark.parametrize("wanted", sorted(asked(), key=str), ids=lambda wanted: wanted.name)
def test_what_is_asked_for_is_locked_in_a_version_that_will_do(wanted: Requirement) -> None:
    versions = [pin.specifier for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert versions
    assert all(wanted.specifier.contains(str(version).removeprefix("==")) for version in versions)


def test_every_package_has_one_version_for_each_machine_and_hashes() -> None:
    assert len(PINS) > 90
    for entry, pin in zip(ENTRIES, PINS, strict=True):
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)) and pin.url is None, pin
        assert re.search(r"\n    --hash=sha256:[0-9a-f]{64}\b", entry), pin
    apart = [(pin.name, str(pin.marker)) for pin in PINS]
    assert len(set(apart)) == len(apart)


def test_nothing_of_the_machine_that_wrote_it_stands_in_it() -> None:
    assert not [pin.name for pin in PINS if re.match(r"torch|triton|nvidia|cuda", pin.name)]
    assert not re.search(r"\+cpu|file:|https?:|--(?:extra-)?index-url|--find-links|^-", LOCK, re.MULTILINE)
