"""Commands and environments of child processes.

`python -m` and `python -c` put the current folder first on the import path.  A file in this folder, such as `numbers.py`,
would replace a module of the same name.  Therefore redistill starts Python with the option `-P`.  The variable
PYTHONSAFEPATH has the same effect for the processes that a child process starts.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def python_module(name: str, *arguments: str) -> list[str]:
    """Build the command that runs a module with this Python.

    The current folder is not on the import path of the child process.

    Args:
        name: The module, such as "redistill".
        arguments: Arguments of the module.

    Example:
        >>> python_module("redistill", "methods")[1:]
        ['-P', '-m', 'redistill', 'methods']
    """
    return [sys.executable, "-P", "-m", name, *arguments]


def current_umask() -> int:
    """Return the permissions that new files of this process do not have.

    Child processes on this machine inherit this mask; those on other machines do not.

    Example:
        >>> 0 <= current_umask() <= 0o777
        True
    """
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def child_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Build the environment of a child process.

    The result has the variables of this process, and PYTHONSAFEPATH, which keeps the current folder off the import path.
    Empty entries of PYTHONPATH, which mean the current folder, are removed.

    Args:
        variables: Variables to add.  A variable that this process has already is not changed.
    """
    found = {**(variables or {}), **os.environ, "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in found:
        entries = [str(Path(entry).absolute()) for entry in found["PYTHONPATH"].split(os.pathsep) if entry]
        found["PYTHONPATH"] = os.pathsep.join(entries)
    return found
