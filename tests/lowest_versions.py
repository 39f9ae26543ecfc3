"""Prints the lowest version of every core dependency in pyproject.toml, as constraints for pip; `make oldest` installs them."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions() -> list[str]:
    """Return `name==version` for each dependency; the version is the lower bound."""
    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [re.sub(r">=([\w.]+).*", r"==\1", dependency) for dependency in dependencies]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
