"""A disk with faults, to stand in for `redistill.storage.files.disk`: at a chosen call it fails, or the process is killed."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

from redistill.storage import files


def refuse(number: int) -> Callable[[], None]:
    """What the system does when it refuses a call with the error of this number, such as errno.ENOSPC."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def kill() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class FaultyDisk(files.Disk):
    """Counts calls while `counting`, and does `act` at a chosen one, with half of its work done where that is possible.

    Args:
        chosen: Number of the call, from 1; None counts alone.
        act: Raises or kills.
        lasting: Whether all calls after the chosen one fail as well, as where a disk stays full.
        removals: Whether removals count; they need no space.
        contents: Whether writes into an open file count.
        piece: A write takes no more bytes than this at a time, so that there is more to be interrupted.
    """

    def __init__(
        self,
        chosen: int | None = None,
        act: Callable[[], None] = kill,
        *,
        lasting: bool = False,
        removals: bool = False,
        contents: bool = True,
        piece: int = 1 << 30,
    ) -> None:
        self.calls: list[str] = []
        self.counting = True
        self._chosen, self._act, self._lasting = chosen, act, lasting
        self._removals, self._contents, self._piece = removals, contents, piece

    def open(self, path: Path, mode: str) -> io.FileIO:
        self._call(f"open {path.name}")
        return super().open(path, mode)

    def write(self, file: io.FileIO, data: bytes | memoryview) -> int:
        if self._contents:
            self._call("write", lambda: files.Disk.write(self, file, data[: len(data) // 2]))
        return super().write(file, data[: self._piece])

    def sync(self, descriptor: int) -> None:
        self._call("sync")  # and no more: no test here cuts the power

    def rename(self, source: Path, target: Path) -> None:
        self._call(f"rename {source.name} {target.name}")
        super().rename(source, target)

    def make_folder(self, folder: Path) -> None:
        self._call(f"make {folder.name}")
        super().make_folder(folder)

    def remove(self, path: Path) -> None:
        if self._removals and path.exists():
            self._call(f"remove {path.name}", lambda: [part.unlink() for part in list(path.glob("*"))[:1]])
        super().remove(path)

    def _call(self, what: str, half: Callable[[], object] = lambda: None) -> None:
        if not self.counting:
            return
        self.calls.append(what)
        if self._chosen == len(self.calls):
            half()
            self._act()
        elif self._lasting and self._chosen is not None and self._chosen < len(self.calls):
            self._act()
