"""A cache of arrays on disk: one process writes a file, all memory-map it.

A cache entry is a folder that contains `arrays.safetensors` and `manifest.json`.  The manifest is written last, and contains
the key of the entry and the SHA-256 of the arrays.  An entry that is incomplete or damaged, or has a wrong key, is computed
again.  The hash of a large file is itself cached until the file changes (`file_hash`).
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from redistill.errors import DataError, OutputError
from redistill.records import Json
from redistill.storage import files, folders
from redistill.storage.lock import BusyError, locked
from redistill.storage.tensors import read_tensors, write_tensors
from redistill.storage.user_cache import cache_folder

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
KEPT_DAYS = 30
"""An entry that has not been used for this number of days is removed when another entry is written."""
WAIT_S = 0.2
"""Seconds between two attempts to lock an entry that another process computes."""


@dataclass(frozen=True)
class Stored:
    """Arrays by name, and JSON values by name that describe the arrays."""

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Json]


def cached(
    kind: str, key: str, make: Callable[[], Stored], *, report: Callable[[str], None], poll: Callable[[], None] = lambda: None
) -> Stored:
    """Return the result of `make`, read from the cache if it is stored under `key`.

    The first process that needs the result calls `make` and writes the result to the cache.  Other processes wait until it is
    written.  All processes memory-map the same file.  If the cache cannot be written, a note is reported and the result stays
    in memory.

    Args:
        kind: Name of the subfolder of the cache.
        key: Hexadecimal hash of everything that the result depends on.
        make: Function that computes the arrays.
        report: Function that is called with a one-line note if the stored result is damaged or cannot be written.
        poll: Function that is called repeatedly while another process computes the result; it may raise an exception to end the
            wait.

    Returns:
        The arrays with their description.  The arrays are memory-mapped, and the caller must not write to them.
    """
    folder = cache_folder() / kind / key
    while True:
        found = _opened(folder, key, report, poll)
        if found is not None:
            return found
        try:
            with locked(folder):
                return _opened(folder, key, report, poll) or _made(folder, key, make, report, poll)
        except BusyError:  # another process computes the entry
            poll()
            time.sleep(WAIT_S)
        except OutputError as error:
            report(f"note: {error}; the data stays in memory")
            return make()


def _opened(folder: Path, key: str, report: Callable[[str], None], poll: Callable[[], None]) -> Stored | None:
    """Return the cache entry in `folder`, with memory-mapped arrays.

    The result is None if the entry is missing or damaged.
    """
    from redistill.storage.file_hash import HASHES, file_hash  # here, since file_hash stores hashes in this cache

    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = files.read_json(folder / MANIFEST)
        is_hash = folder.parent.name == HASHES  # the hash of a stored hash would be stored, and so on
        found = files.digest(folder / ARRAYS) if is_hash else file_hash(folder / ARRAYS, report, poll)
        if manifest["key"] != key or found != manifest["sha256"]:
            raise DataError("the key or the SHA-256 in manifest.json is wrong")
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(folder / ARRAYS).items()}
        stored = Stored({name: arrays[name] for name in manifest["arrays"]}, dict(manifest["about"]))
    except (DataError, OSError, LookupError, TypeError, ValueError) as error:
        report(f"note: {folder}: the cached data is damaged ({error}); it is computed again")
        with suppress(OSError):  # a folder that cannot be written to is reported when it is locked
            (folder / MANIFEST).unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(folder / MANIFEST)
    return stored


def _made(
    folder: Path, key: str, make: Callable[[], Stored], report: Callable[[str], None], poll: Callable[[], None]
) -> Stored:
    """Compute a cache entry, write it to `folder`, and return it.

    The caller has locked the folder.
    """
    folders.remove_leftovers(folder)
    made = make()
    try:
        tensors = {name: torch.from_numpy(array) for name, array in made.arrays.items()}
        sha256 = write_tensors(folder / ARRAYS, tensors)
        about = {"key": key, "sha256": sha256, "arrays": list(made.arrays), "about": made.about}
        files.write_json(folder / MANIFEST, about)
    except OutputError as error:
        report(f"note: {error}; the data stays in memory")
        return made
    _remove_unused(folder)
    return _opened(folder, key, report, poll) or made


def _remove_unused(current: Path) -> None:
    """Remove cache entries that have not been used for 30 days (`KEPT_DAYS`).

    The manifest of an entry has the time of its last use.  An entry without a manifest is incomplete or damaged, and its folder
    has the time of its last change.  The entry `current` is kept.  A process that has memory-mapped the arrays of a removed
    entry can still read them.
    """
    oldest = time.time() - KEPT_DAYS * 86_400
    for folder in current.parent.iterdir():
        manifest = folder / MANIFEST
        with suppress(OSError):
            used = manifest if manifest.exists() else folder
            if folder != current and used.stat().st_mtime < oldest:
                files.disk.remove(folder)
