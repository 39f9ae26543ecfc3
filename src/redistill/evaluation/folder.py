"""The evaluation folder: settings.json, written first, and responses/, appended to, so that an evaluation can resume."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill.contracts import Processes
from redistill.errors import CheckpointError
from redistill.evaluation.answers import Answerer, Line, part, with_metrics
from redistill.records import Metric, Record
from redistill.storage import files

ProgressCall = Callable[[int, int, int], None]

SETTINGS = "settings.json"
RESPONSES = "responses"


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Compare the settings with those of the folder, or write them if it has none.

    Raises:
        CheckpointError: the folder has other settings, or answers but no settings.
    """
    # Before settings.json: else another process could write both in between, and its answers would seem to have no settings.
    has_answers = any((folder / RESPONSES).glob("*.jsonl"))
    if not (folder / SETTINGS).exists():
        if has_answers:
            raise CheckpointError(f"{folder}: has {RESPONSES}/ of unknown settings (no {SETTINGS}); choose another folder")
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
                f"{folder}: its answers have {name} = {theirs.get(name)}, and this evaluation has {ours.get(name)}; "
                f"choose another folder, or remove {SETTINGS} and {RESPONSES}/ from this one"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted names for nested ones, such as "sampling.top_p"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def model_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and their names: an evaluation must not resume with another model."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        # A copy: NumPy makes a storage unresizable, and FSDP resizes the storages of a sharded model.
        found.update(parameter.detach().reshape(-1).view(torch.uint8).to("cpu", copy=True).numpy().data)
    return found.hexdigest()


def data_hash(records: Sequence[Record], prompts: Sequence[tuple[int, ...]]) -> str:
    """SHA-256 of the record ids, the tokenised prompts and the references."""
    rows = [[record.record_id, prompt_ids, record.references] for record, prompt_ids in zip(records, prompts, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass
class Tally:
    """Number of answers done, total number, and speed of this process.

    Args:
        progress: Called after every batch; None calls nothing.
        total: Total number of this process's answers.
        done: Number of answers done, those of earlier calls included.
        tokens: Tokens that this call generated.
        seconds: Duration of their generation.
    """

    progress: ProgressCall | None
    total: int
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, answers: int, tokens: int = 0, seconds: float = 0.0) -> None:
        self.done, self.tokens, self.seconds = self.done + answers, self.tokens + tokens, self.seconds + seconds
        if self.progress is not None:
            self.progress(self.done, self.total, self.tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second; None if no answer was missing."""
        return self.tokens / self.seconds if self.seconds else None


@dataclass(frozen=True)
class ResponseFiles:
    """The responses files of a folder: existing answers are kept, missing ones are generated and appended.

    Args:
        answerer: Generates and scores answers.
        tally: Counts them.
        folder: The folder of the files.
        processes: Each process answers a part of the prompts.
        batch_size: Prompts per batch.
    """

    answerer: Answerer
    tally: Tally
    folder: Path
    processes: Processes
    batch_size: int

    def complete(
        self,
        dataset: str,
        records: Sequence[Record],
        prompts: Sequence[tuple[int, ...]],
        seed: int,
        metrics: Sequence[Metric],
    ) -> list[Line]:
        """Generate the missing answers of one file; returns all its lines in the order of the records.

        Each process generates its part.  Metrics that an existing line lacks are computed from its response.
        """
        name = f"{dataset}-seed{seed}"
        existing = [line for path in self._files(name) for line in files.read_lines(path)]
        found = {line["id"]: line for line in existing if isinstance(line, dict) and "id" in line}
        mine = part(range(len(records)), self.processes)
        missing = [index for index in mine if records[index].record_id not in found]
        missing.sort(key=lambda index: (-len(prompts[index]), index))  # batches of similar lengths, longest first
        self.tally.add(len(mine) - len(missing))
        rank = self.processes.rank
        path = self.folder / (f"{name}.jsonl" if self.processes.world == 1 else f"{name}.part{rank}.jsonl")
        if missing and path.exists():
            files.rewrite_lines(path, files.read_lines(path))  # removes an incomplete last line before lines are appended
        for start in range(0, len(missing), self.batch_size):
            began = time.perf_counter()
            batch = missing[start : start + self.batch_size]
            lines = self.answerer.lines(dataset, [records[i] for i in batch], [prompts[i] for i in batch], seed, metrics)
            files.append_lines(path, lines)
            found |= {line["id"]: line for line in lines}
            self.tally.add(len(lines), sum(line["tokens"] for line in lines), time.perf_counter() - began)
        complete = [with_metrics(found[records[index].record_id], records[index], metrics) for index in mine]
        gathered = {line["id"]: line for line in self.processes.gather(complete)}
        ordered = [gathered[record.record_id] for record in records]
        if self.processes.is_main:
            files.rewrite_lines(self.folder / f"{name}.jsonl", ordered)
            for leftover in self._files(name)[1:]:
                leftover.unlink()
        return ordered

    def _files(self, name: str) -> list[Path]:
        """The file, and its parts that processes of this call or an interrupted one have written."""
        return [self.folder / f"{name}.jsonl", *sorted(self.folder.glob(f"{name}.part*.jsonl"))]
