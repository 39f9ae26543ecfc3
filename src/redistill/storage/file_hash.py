"""Hashes of large files, which are cached until the file changes.

Any change of a file changes its size, its modification time (mtime), its change time (ctime) or its inode.  A program can
restore the modification time, as `cp -p` and `os.utime` do.  No program can restore the change time, which the system sets.
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
"""Hashes of files that changed within this number of seconds are not cached.

The timestamps of a file system have a limited resolution, so a second change could have the timestamps of the first.
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
