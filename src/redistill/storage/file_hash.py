"""Hashes of large files, which are cached until the file changes.

A file is regarded as unchanged if its size, its modification time, its change time (ctime) and its inode are unchanged. A
program can set the modification time of a file to an earlier value, but not its change time, which only the system sets.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from redistill.storage import files
from redistill.storage.cache import Stored, cached

HASHES = "hashes"
"""The kind of cache entry that has the hash of a file."""
LARGE_BYTES = 10_000_000
"""Minimum size of a file whose hash is cached, in bytes; a smaller file is hashed at every call, in less than 0.1 s."""
SETTLED_S = 2.0
"""The hash of a file that changed within this number of seconds is not cached.

The timestamps of a file system have a limited resolution. Two changes within a short time could have equal timestamps.
"""


def file_hash(path: Path, report: Callable[[str], None], poll: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file, from the cache if the file is unchanged.

    If several processes of a machine need the same hash, one computes it and the others wait.

    Args:
        path: The file; a symbolic link is followed.
        report: Called with one line if the cache entry is damaged or cannot be written.
        poll: Called repeatedly while another process computes the hash; it may raise an exception to stop waiting.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    found = path.stat()
    if found.st_size < LARGE_BYTES or time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return files.digest(path)
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    key = hashlib.sha256(json.dumps([str(path.resolve()), *identity]).encode()).hexdigest()

    def make() -> Stored:
        return Stored({"sha256": np.array(list(bytes.fromhex(files.digest(path))), dtype=np.uint8)}, {})

    stored = cached(HASHES, key, make, report=report, poll=poll).arrays.get("sha256")
    if stored is None or stored.dtype != np.uint8 or stored.size != hashlib.sha256().digest_size:  # foreign
        return files.digest(path)
    return stored.tobytes().hex()
