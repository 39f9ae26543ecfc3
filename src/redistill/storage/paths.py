"""Check of paths before a command computes anything.

Python accepts every path that the operating system accepts. Libraries that write and load models accept fewer paths:
libraries in Rust encode paths as UTF-8, and `from_pretrained` expands "~".
"""

import os
from pathlib import Path

from redistill.errors import OutputError
from redistill.storage.redaction import printable

MAX_BYTES = 3800
"""Maximum length of an output path. Linux limits a path to 4,096 bytes, and the paths of files inside the folder are longer."""

MAX_PART_BYTES = 255
"""Maximum length of one part of a path (the text between two "/"). Testing whether a longer part exists raises an error."""


def unusable(text: str) -> str | None:
    """Return the reason why the path `text` cannot exist; None if it can exist.

    Args:
        text: The path of an input file or folder. The function does not access the disk.

    Example:
        >>> unusable("data/train.jsonl"), unusable("x" * 300)
        (None, 'a part of the path has 300 bytes; must be at most 255; use a shorter name or path')
    """
    parts = [len(part) for part in text.encode("utf-8", "surrogatepass").split(b"/")]
    if "\0" in text:
        return "contains a NUL character; remove it"
    if max(parts) > MAX_PART_BYTES:
        return f"a part of the path has {max(parts)} bytes; must be at most {MAX_PART_BYTES}; use a shorter name or path"
    if sum(parts) + len(parts) > MAX_BYTES:
        return f"the path has {sum(parts) + len(parts)} bytes; must be at most {MAX_BYTES}; use a shorter path"
    return None


def expanded(text: str | Path) -> Path:
    """Replace "~" or "~USER" at the start of a path by the home folder of the user.

    If there is no user USER, the path is returned unchanged.

    Example:
        >>> expanded("data/train.jsonl").as_posix()
        'data/train.jsonl'
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def check_path(path: Path) -> None:
    """Check that all libraries can use an output path, and that it can be printed.

    Args:
        path: A folder, which need not exist. The function does not access the disk.

    Raises:
        OutputError: the path contains a control character; the path begins with "~"; the path has more than 3,800 bytes
            (`MAX_BYTES`); or the encoding of the path, which depends on the locale of this process, is not UTF-8.
    """
    if (fault := _fault(str(path))) is not None:
        shown = printable(repr(str(path)))  # `repr` does not escape all characters that a terminal cannot show
        raise OutputError(f"{shown if len(shown) <= 200 else f'{shown[:200]}...'}: an output path {fault}")


def _fault(text: str) -> str | None:
    """Return the rule that a path violates, with the remedy.

    The result is None if the path can be used.
    """
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = b""
    if encoded != text.encode("utf-8", "surrogatepass"):  # undecodable bytes are surrogates, which are encoded as one byte
        return "must be encoded as UTF-8; use ASCII characters, or set PYTHONUTF8=1 if the path is UTF-8 and the locale is not"
    if printable(text) != text or "\n" in text:
        return "must not contain control characters; choose another output folder"
    if text.startswith("~"):
        return "must not begin with '~', which only the shell expands; write the path of the home folder"
    if len(encoded) > MAX_BYTES:
        return f"must have at most {MAX_BYTES:,} bytes, and this one has {len(encoded):,}; choose a shorter path"
    return None
