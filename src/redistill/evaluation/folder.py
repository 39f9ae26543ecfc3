"""The evaluation folder: settings.json and responses/.

settings.json is written first.  Answers are then appended to the files in responses/, so that an evaluation can resume.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from redistill.contracts import Processes
from redistill.errors import CheckpointError
from redistill.evaluation.answers import Answerer, Line, Row, is_answer, part, with_metrics
from redistill.records import Json, Metric
from redistill.storage import files
from redistill.storage.redaction import plain_line

ProgressCall = Callable[[int, int, int], None]

SETTINGS = "settings.json"
RESPONSES = "responses"
DECODED = "@"
"""Separates data set and decoding in the name of a responses file.  No name of a data set contains this character."""


def check_settings(folder: Path, settings: Mapping[str, Json]) -> None:
    """Compare `settings` with settings.json; write settings.json if it is missing.

    Raises:
        CheckpointError: the folder has other settings, or answers but no settings.
    """
    # Answers are looked for first.  In the opposite order, another process could write settings and answers between the two
    # checks, and its answers would seem to have no settings.
    has_answers = any((folder / RESPONSES).glob("*.jsonl"))
    if not (folder / SETTINGS).exists():
        if has_answers:
            raise CheckpointError(
                f"{folder}: contains {RESPONSES}/ but no {SETTINGS} with the settings of the answers; choose another folder"
            )
        files.write_json(folder / SETTINGS, settings)
        return
    held = files.read_json(folder / SETTINGS)
    if not isinstance(held, dict):
        raise CheckpointError(
            f"{folder / SETTINGS}: is not a JSON object; choose another folder, or remove this file and {RESPONSES}/"
        )
    theirs, ours = _flat(held), _flat(settings)
    for name in [*ours, *theirs]:  # in this order a cause (tokens) is reported before its consequences (datasets)
        if theirs.get(name) != ours.get(name):
            raise CheckpointError(
                f"{folder}: its answers have {_shown(name)} = {_shown(theirs.get(name))}, and this evaluation has "
                f"{_shown(ours.get(name))}; "
                f"choose another folder, or remove {SETTINGS} and {RESPONSES}/ from this one"
            )


def _shown(value: object) -> str:
    """Return a value of settings.json as one line of at most 200 characters."""
    return plain_line(str(value))[:200]


def _flat(settings: Mapping[str, Json]) -> dict[str, Json]:
    """Return nested settings as one dict, with dotted names such as "sampling.top_p"."""
    flat: dict[str, Json] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def model_hash(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and their names, as hexadecimal digits.

    The hash is part of settings.json, so that an evaluation cannot resume with another model.
    """
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        # Copied, because NumPy makes a storage unresizable, and FSDP resizes the storages of a sharded model.
        found.update(parameter.detach().reshape(-1).view(torch.uint8).to("cpu", copy=True).numpy().data)
    return found.hexdigest()


def data_hash(rows: Sequence[Row]) -> str:
    """Return the SHA-256 of the record ids, the tokenised prompts and the references."""
    return hashlib.sha256(json.dumps([[record.record_id, ids, record.references] for record, ids in rows]).encode()).hexdigest()


@dataclass
class Tally:
    """Progress of this process: answers done, total number of answers, and speed.

    Args:
        progress: Function that is called after every batch, as described in `Evaluator.evaluate`.  If None, it is not called.
        total: Total number of this process's answers.
        done: Number of answers that are done, including those of earlier calls.
        tokens: Number of tokens that this call generated.
        seconds: Seconds that the generation of these tokens took.
    """

    progress: ProgressCall | None
    total: int
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, answers: int, tokens: int = 0, seconds: float = 0.0) -> None:
        """Add finished answers to the progress of this process, then call `progress`.

        Args:
            answers: Number of answers that are now done.
            tokens: Number of tokens that were generated for these answers.
            seconds: Seconds that their generation took.
        """
        self.done, self.tokens, self.seconds = self.done + answers, self.tokens + tokens, self.seconds + seconds
        if self.progress is not None:
            self.progress(self.done, self.total, self.tokens)


@dataclass(frozen=True)
class ResponseFiles:
    """The responses files of a folder.

    Existing answers are kept.  Missing answers are generated and appended.

    Args:
        answerer: Generates and scores answers.
        tally: Counts the answers.
        folder: The folder of the files.
        processes: Rank and number of processes; each process answers a part of the prompts.
        batch_size: Prompts per batch.
    """

    answerer: Answerer
    tally: Tally
    folder: Path
    processes: Processes
    batch_size: int

    def complete(
        self, dataset: str, rows: Sequence[Row], seed: int, metrics: Sequence[Metric], *, decoding: str = ""
    ) -> list[Line]:
        """Generate the missing answers of one responses file, and return all its lines.

        There is one file for each data set, decoding and seed; `decoding` is "" for the main decoding.  The lines are in the
        order of `rows`.  Each process generates a part of the answers.  If an existing line lacks a metric, the metric is
        computed from the response.  If a line does not contain an answer, the answer is generated again.
        """
        name = f"{dataset}{DECODED}{decoding}-seed{seed}" if decoding else f"{dataset}-seed{seed}"
        existing = [line for path in self._files(name) for line in cast("list[Line]", files.read_lines(path))]
        found = {line["id"]: line for line in existing if is_answer(line, metrics)}
        mine = part(rows, self.processes)
        # Batches of similar lengths, longest first.
        missing = sorted((row for row in mine if row[0].record_id not in found), key=lambda row: -len(row[1]))
        self.tally.add(len(mine) - len(missing))
        suffix = "" if self.processes.world == 1 else f".part{self.processes.rank}"
        path = self.folder / f"{name}{suffix}.jsonl"
        if missing and path.exists():
            files.rewrite_lines(path, files.read_lines(path))  # removes an incomplete last line before lines are appended
        for start in range(0, len(missing), self.batch_size):
            began = time.perf_counter()
            lines = self.answerer.lines(dataset, missing[start : start + self.batch_size], seed, metrics)
            files.append_lines(path, lines)
            found |= {line["id"]: line for line in lines}
            self.tally.add(len(lines), sum(line["tokens"] for line in lines), time.perf_counter() - began)
        complete = [with_metrics(found[record.record_id], record, metrics) for record, _ in mine]
        gathered = {line["id"]: line for line in self.processes.gather(complete)}
        ordered = [gathered[record.record_id] for record, _ in rows]
        if self.processes.is_main:
            files.rewrite_lines(self.folder / f"{name}.jsonl", ordered)
            for leftover in self._files(name)[1:]:
                leftover.unlink()
        return ordered

    def _files(self, name: str) -> list[Path]:
        """Return the path of a responses file, and the paths of its existing part files.

        If there are several processes, each writes one part file.  Part files of an interrupted call are included.
        """
        return [self.folder / f"{name}.jsonl", *sorted(self.folder.glob(f"{name}.part*.jsonl"))]
