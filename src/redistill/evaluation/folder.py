"""The evaluation folder: settings.json from the start, responses/ as they are written, so that an evaluation can be resumed."""

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
from redistill.evaluation.answers import Answerer, Line, share, with_metrics
from redistill.records import Metric, Record
from redistill.storage import files

ProgressCall = Callable[[int, int, int], None]

SETTINGS = "settings.json"
RESPONSES = "responses"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings where the folder has none; where it has, they must be the same.

    Answers are looked for first: a process that begins later must not take another's first answers for a stranger's.

    Raises:
        CheckpointError: they are not the same, or answers stand there without settings.
    """
    has_answers = any((folder / RESPONSES).glob("*.jsonl"))
    if not (folder / SETTINGS).exists():
        if has_answers:
            raise CheckpointError(f"{folder}: holds {RESPONSES}/ of unknown settings (no {SETTINGS}); choose another folder")
        files.write_json(folder / SETTINGS, settings)
        return
    held = files.read_json(folder / SETTINGS)
    if not isinstance(held, dict):
        raise CheckpointError(f"{folder / SETTINGS}: holds no settings; choose another folder, or remove it and {RESPONSES}/")
    theirs, ours = _flat(held), _flat(settings)
    for name in [*ours, *theirs]:  # in their own order: a cause (tokens) is named before what follows from it (datasets)
        if theirs.get(name) != ours.get(name):
            raise CheckpointError(
                f"{folder}: its answers were made with {name} = {theirs.get(name)}, and now it is {ours.get(name)}; "
                f"evaluate into another folder, or remove {SETTINGS} and {RESPONSES}/ from this one"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of settings under names such as "sampling.top_p"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def model_hash(model: nn.Module) -> str:
    """SHA-256 of all weights, by name: an evaluation must not go on with another model."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        # A copy: NumPy makes a storage unresizable, and FSDP resizes the storages of a sharded model.
        found.update(parameter.detach().reshape(-1).view(torch.uint8).to("cpu", copy=True).numpy().data)
    return found.hexdigest()


def data_hash(records: Sequence[Record], prompts: Sequence[tuple[int, ...]]) -> str:
    """SHA-256 of what is asked, as tokens, and of what counts as right."""
    rows = [[record.record_id, prompt_ids, record.references] for record, prompt_ids in zip(records, prompts, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass
class Tally:
    """How many answers stand, of how many, and how fast this process writes them."""

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
        """None where nothing was left to write."""
        return self.tokens / self.seconds if self.seconds else None


@dataclass(frozen=True)
class Writer:
    """Keeps the responses files of a folder: what is there stays, what is missing is answered and appended."""

    answerer: Answerer
    tally: Tally
    folder: Path
    processes: Processes
    batch_size: int

    def responses(
        self,
        dataset: str,
        records: Sequence[Record],
        prompts: Sequence[tuple[int, ...]],
        seed: int,
        metrics: Sequence[Metric],
    ) -> list[Line]:
        """All lines of one file in the order of the records, the missing ones of this process's share made first.

        Answers that are there already are scored by those of `metrics` that they lack.
        """
        name = f"{dataset}-seed{seed}"
        written = [line for path in self._files(name) for line in files.read_lines(path)]
        found = {line["id"]: line for line in written if isinstance(line, dict) and "id" in line}
        mine = share(range(len(records)), self.processes)
        missing = [place for place in mine if records[place].record_id not in found]
        missing.sort(key=lambda place: (-len(prompts[place]), place))  # batches of like lengths, the hungriest first
        self.tally.add(len(mine) - len(missing))
        rank = self.processes.rank
        path = self.folder / (f"{name}.jsonl" if self.processes.world == 1 else f"{name}.part{rank}.jsonl")
        if missing and path.exists():
            files.rewrite_lines(path, files.read_lines(path))  # nothing must be appended to a line that was cut
        for start in range(0, len(missing), self.batch_size):
            began = time.perf_counter()
            places = missing[start : start + self.batch_size]
            lines = self.answerer.lines(dataset, [records[i] for i in places], [prompts[i] for i in places], seed, metrics)
            files.append_lines(path, lines)
            found |= {line["id"]: line for line in lines}
            self.tally.add(len(lines), sum(line["tokens"] for line in lines), time.perf_counter() - began)
        complete = [with_metrics(found[records[place].record_id], records[place], metrics) for place in mine]
        gathered = {line["id"]: line for line in self.processes.gather(complete)}
        ordered = [gathered[record.record_id] for record in records]
        if self.processes.is_main:
            files.rewrite_lines(self.folder / f"{name}.jsonl", ordered)
            for part in self._files(name)[1:]:
                part.unlink()
        return ordered

    def _files(self, name: str) -> list[Path]:
        """The file, and the parts of it that several processes have written, in this call or an interrupted one."""
        return [self.folder / f"{name}.jsonl", *sorted(self.folder.glob(f"{name}.part*.jsonl"))]
