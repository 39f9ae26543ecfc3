"""The cache folders of redistill and of torch.compile.

torch executes code from the cache of torch.compile. By default, this cache has a predictable name in the folder for temporary
files, so another local user could create it first. redistill therefore sets a private folder.
"""

import os
import stat
import tempfile
from pathlib import Path

from redistill.errors import ConfigError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable with torch's cache folder, which also contains the cache of triton."""


def cache_folder() -> Path:
    """Return the folder of the cache: $REDISTILL_CACHE, by default ~/.cache/redistill.

    All files in the cache can be computed again, so the folder may be removed.
    """
    return Path(os.environ.get("REDISTILL_CACHE") or Path.home() / ".cache" / "redistill").expanduser().absolute()


def set_compiler_cache() -> None:
    """Set torch's compiler cache to a folder below `cache_folder()`.

    The folder is set in the environment variable $TORCHINDUCTOR_CACHE_DIR. A value that the user has set is kept. Call the
    function before torch is imported, because torch stores its default folder in the same variable.
    """
    current = os.environ.get(VARIABLE)
    of_torch = Path(tempfile.gettempdir(), "torchinductor_")  # followed by the name of the user
    if not current or current.startswith(str(of_torch)):
        os.environ[VARIABLE] = str(_default())


def check_compiler_cache() -> None:
    """Create the compiler cache if necessary, for this user only, and check it.

    If the default folder cannot be created, a new temporary folder replaces it.

    Raises:
        ConfigError: the folder cannot be created; the folder is a link; the folder belongs to another user; or other users can
            write to the folder.
    """
    set_compiler_cache()
    folder = Path(os.environ[VARIABLE])
    remedy = f"remove it, set {VARIABLE} to a folder of your own, or set training.compile to none"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        if folder == _default() and not folder.exists():
            os.environ[VARIABLE] = tempfile.mkdtemp(prefix="redistill-")
            return
        raise ConfigError(f"compiler cache {folder}: cannot be created ({error.strerror}); {remedy}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"compiler cache {folder}: is a link, whose target can change; {remedy}")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise ConfigError(f"compiler cache {folder}: belongs to another user, and its code would run; {remedy}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"compiler cache {folder}: other users can write to it, and their code would run; {remedy}")


def _default() -> Path:
    return cache_folder() / "compiled"
