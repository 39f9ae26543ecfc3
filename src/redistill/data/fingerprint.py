"""Keys of cached data.

A key is a hash of everything that the data depends on, with the code that makes it.
"""

import hashlib
import importlib.metadata
import json
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from redistill.interfaces import Tokenizer
from redistill.records import Json
from redistill.storage import files

CACHED_BYTES = 200_000
"""Data files and token arrays of fewer bytes are read and tokenized at every start, in less than a second."""


def fingerprint(*parts: Json) -> str:
    """A hexadecimal hash of `parts` and of the code.

    The code is that of this package, and the versions of the libraries that it uses.
    """
    described = json.dumps([_code(), *parts], sort_keys=True)
    return hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of the class and of all files of a tokenizer.

    They include its chat template.  A chat template that prints the date changes the hash once a day.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(Path(folder))
        written = {str(path.relative_to(folder)): files.digest(path) for path in Path(folder).rglob("*") if path.is_file()}
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    is_dated = "strftime_now" in json.dumps(tokenizer.chat_template)
    return fingerprint(kind, written, _today() if is_dated else None)


def _today() -> str:
    return datetime.now(UTC).astimezone().date().isoformat()


@cache
def _code() -> str:
    """Versions of the libraries, and a hash of the modules that read and tokenize rows."""
    versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")]
    modules = [Path(__file__).parents[1] / "records.py", *sorted(Path(__file__).parent.glob("*.py"))]
    return " ".join([*versions, *(files.digest(path) for path in modules)])
