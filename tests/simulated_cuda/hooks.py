"""Builds and loads the hooks of the simulated device.  Import this module before torch."""

import ctypes
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")


def load(folder: Path) -> None:
    """Compile the hooks into a folder, unless they are there, and load them.

    Raises:
        RuntimeError: torch was imported before, or the compiler failed.
    """
    if "torch" in sys.modules:
        raise RuntimeError("the hooks of the simulated device must be loaded before torch is imported")
    found = find_spec("torch")
    assert found is not None and found.origin is not None
    torch = Path(found.origin).parent
    library = folder / "hooks.so"
    if not library.exists():
        include = torch / "include"
        paths = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
        flags = ["-std=c++20", "-O0", "-shared", "-fPIC", *paths]
        command = ["g++", *flags, str(SOURCE), "-o", str(library), "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"g++: {done.stderr[-2000:]}")
    ctypes.CDLL(str(library))
