"""Responses files of an evaluation: their names, and the content of their lines."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from redistill.records import Json
from redistill.storage import files

QUESTION_HASH = "question_hash"
"""Key of the result of `question_hash` in exported scores."""
_NAME = re.compile(r"(?P<dataset>[^@]+)(?:@(?P<decoding>[^@]+))?-seed(?P<seed>-?\d+)\.jsonl")


class ResponsesFile(NamedTuple):
    """A responses file.

    Args:
        dataset: Name of the data set.
        decoding: Name of the decoding in scores.json; None is the main decoding.
        seed: The evaluation seed.
        path: Path of the file.
    """

    dataset: str
    decoding: str | None
    seed: str
    path: Path


def responses_files(folder: Path, scores: Mapping[str, Json]) -> Iterator[ResponsesFile]:
    """Yield the responses files of an evaluation.

    Files are left out if scores.json does not list their data set or their decoding.

    Args:
        folder: Folder of the evaluation.
        scores: Content of its scores.json.
    """
    listed = scores.get("datasets")
    datasets = {files.slug(name): (name, about) for name, about in listed.items()} if isinstance(listed, Mapping) else {}
    for path in sorted((folder / "responses").glob("*.jsonl")):
        match = _NAME.fullmatch(path.name)
        if match is None or (found := datasets.get(files.slug(match["dataset"]))) is None:
            continue
        name, about = found
        decodings = about.get("decodings") if isinstance(about, Mapping) else None
        if match["decoding"] is None or (isinstance(decodings, Mapping) and match["decoding"] in decodings):
            yield ResponsesFile(name, match["decoding"], match["seed"], path)


def question_hash(line: Mapping[str, Json]) -> str:
    """Return a hash of the prompt and the references in a line of a responses file.

    Exported scores contain this hash instead of the texts.
    """
    if isinstance(recorded := line.get(QUESTION_HASH), str):
        return recorded
    question = json.dumps([line.get("prompt"), line.get("references")])
    return hashlib.blake2b(question.encode(), digest_size=12).hexdigest()


def hashed_line(line: Mapping[str, Json], names: Sequence[str] | None) -> Mapping[str, Json]:
    """Copy a line of a responses file, and add a hash of prompt and references.

    References that are not a list are left out.

    Args:
        line: The line.
        names: Fields to copy; None copies all.
    """
    fields = line if names is None else {name: line.get(name) for name in names}
    kept = {name: value for name, value in fields.items() if name != "references" or isinstance(value, list)}
    return {**kept, QUESTION_HASH: question_hash(line)}
