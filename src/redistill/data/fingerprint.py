"""Keys of cached data.

A key is a hash of everything that the cached data depends on, including the code that computes the data.
"""

import hashlib
import importlib.metadata
import json
import tempfile
from functools import cache
from pathlib import Path

from redistill.interfaces import Tokenizer
from redistill.records import Json
from redistill.storage import files

CACHED_BYTES = 200_000
"""Minimum size of cached data, in bytes; smaller data is read and tokenized at every start, which takes less than a second."""


def fingerprint(*parts: Json) -> str:
    """Return a hash of `parts` and of the code that reads and tokenizes rows.

    The result has 40 hexadecimal digits. The hash of the code includes the modules of this folder, the modules `records`,
    `randomness` and `storage.json_text`, and the versions of libraries.
    """
    described = json.dumps([_code(), *parts], sort_keys=True)
    return hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return a hash of a tokenizer's class and of all files that the tokenizer saves.

    The files include the chat template.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(Path(folder))
        written = {str(path.relative_to(folder)): files.digest(path) for path in Path(folder).rglob("*") if path.is_file()}
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return fingerprint(kind, written)


@cache
def _code() -> str:
    """Return a text that identifies the code by which cached data is computed.

    The text contains the versions of libraries, and the hashes of the modules.
    """
    versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2", "numpy", "pyarrow")]
    shared = [Path(__file__).parents[1] / name for name in ("records.py", "randomness.py", "storage/json_text.py")]
    modules = [*shared, *sorted(Path(__file__).parent.glob("*.py"))]
    return " ".join([*versions, *(files.digest(path) for path in modules)])
