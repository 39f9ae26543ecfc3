"""Learning from what the teacher writes: one answer to each prompt, written once and kept."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from redistill.contracts import Example, GenerationRequest, Needs, Sampling, TokenSequence
from redistill.errors import DataError
from redistill.policies.generated import answered, check_writing
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Stateless
from redistill.storage import files

FILE = "teacher-responses.jsonl"
TEACHER_MARK = "teacher_cross_entropy"
MARK_SEQUENCES = 8
SAME_TEACHER_NATS = 0.01  # room for the rounding of another machine or batch

Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class TeacherGenerated:
    """The teacher's answers, one to each prompt for the whole run: sequence-level distillation.

    Source: SeqKD (Kim and Rush, arXiv 1606.07947).  Answers are written in blocks ahead of need and kept in
    teacher-responses.jsonl, so that neither a later epoch nor a resume writes any of them again.

    Args:
        temperature: Of sampling, > 0.
        top_p: Nucleus of sampling, in (0, 1]; 1 keeps all.
        store: File of the answers, for several runs of the same teacher, data and seed, one after the other; None keeps it in
            the run folder.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    store: str | None = None

    def __post_init__(self) -> None:
        check_writing(self.temperature, self.top_p)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(temperature=0.7, top_p=0.9))

    @property
    def sampling(self) -> Sampling | None:
        """The student writes nothing."""
        return None

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, teacher_text=True)

    def bind(self, tools: PolicyTools) -> "TeacherSource":
        return TeacherSource(self, tools)


class TeacherSource(Stateless):
    """Looks answers up, and has a block of them written when the step wants one that is not there yet.

    What it remembers is on disk or can be written again, the same to the letter; so checkpoints hold nothing of it.
    """

    def __init__(self, settings: TeacherGenerated, tools: PolicyTools) -> None:
        assert tools.teacher is not None, "checked by `needs` when the recipe was read"
        self._sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p)
        self._tools, self._generate = tools, tools.teacher.generate
        path = Path(settings.store) if settings.store else tools.folder and tools.folder / FILE
        self._store = ResponseStore(path, self._sampling, tools) if path else None
        self._answers: dict[Key, tuple[int, ...]] | None = None

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        if self._answers is None:
            self._answers = {} if self._store is None else self._store.read()
        # Not this process's items but everybody's, so that all processes write at the same steps.
        if self._unanswered(step):
            self._write(self._block(step))
        return [answered(item.example, self._answers[_key(item.example)], "teacher") for item in items]

    def _block(self, step: int) -> list[Example]:
        """This step's prompts without an answer, and later ones until the generation batch of every process is full."""
        size = self._tools.batch_size * self._tools.processes.world
        now = self._unanswered(step)
        block = dict(now)
        for later in range(step + 1, self._tools.updates):
            if len(block) >= size:
                break
            block |= self._unanswered(later)
        return list(block.values())[: max(size, len(now))]

    def _unanswered(self, step: int) -> dict[Key, Example]:
        assert self._answers is not None
        examples = {_key(item.example): item.example for item in self._tools.gold.all_items(step)}
        return {key: example for key, example in examples.items() if key not in self._answers}

    def _write(self, block: Sequence[Example]) -> None:
        """Have the teacher answer the block, each process its share."""
        assert self._answers is not None
        share = self._tools.gold.share(block)
        requests = [
            GenerationRequest(
                prompt_ids=example.prompt_ids,
                max_new_tokens=self._tools.response_tokens,
                seed=self._tools.seed,
                stream=("teacher-response", example.sample),
            )
            for example in share
        ]
        generations = self._generate(requests, self._sampling) if requests else []
        answers = dict(self._tools.processes.gather([(_key(e), g.token_ids) for e, g in zip(share, generations, strict=True)]))
        if self._store is not None and self._tools.processes.is_main:
            self._store.append(answers)
        self._answers |= answers


class ResponseStore:
    """Answers in a file: a line about what they depend on, then one a line.

    Raises:
        DataError: the file is something else, or holds answers that this run's teacher would not give.
    """

    def __init__(self, path: Path, sampling: Sampling, tools: PolicyTools) -> None:
        self._path, self._sampling, self._tools = path, sampling, tools

    def read(self) -> dict[Key, tuple[int, ...]]:
        """All answers, as the main process finds them; every process asks."""
        lines: list[Any] = []
        if self._tools.processes.is_main and self._path.exists():
            lines = files.read_lines(self._path) or [None]  # what is there but empty is no store
        lines = self._tools.processes.gather(lines)
        if lines:
            self._check(lines[0])
            if self._tools.processes.is_main:
                files.rewrite_lines(self._path, lines)  # nothing must be appended to a line that was cut
        return {(line["sample"], line["prompt"]): tuple(line["token_ids"]) for line in lines[1:]}

    def append(self, answers: Mapping[Key, tuple[int, ...]]) -> None:
        """Put a block of answers on disk."""
        lines = [
            {"sample": sample, "prompt": prompt, "token_ids": list(token_ids)}
            for (sample, prompt), token_ids in answers.items()
        ]
        if self._path.exists():
            files.append_lines(self._path, lines)
        else:
            files.rewrite_lines(self._path, [self._header, *lines])

    @cached_property
    def _header(self) -> dict[str, Any]:
        tools = self._tools
        return {
            "seed": tools.seed,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "response_tokens": tools.response_tokens,
            "end_ids": list(tools.end_ids),
            TEACHER_MARK: teacher_cross_entropy(tools),
        }

    def _check(self, found: Any) -> None:
        if not (isinstance(found, Mapping) and found.keys() == self._header.keys()):
            raise DataError(f"{self._path}: holds something else than a teacher's answers; name another file as policy.store")
        for name, mine in self._header.items():
            is_close = name == TEACHER_MARK and None not in (found[name], mine)
            if not (math.isclose(found[name], mine, abs_tol=SAME_TEACHER_NATS) if is_close else found[name] == mine):
                raise DataError(
                    f"{self._path}: written with {name} = {found[name]}, where this run has {mine}; name another file as "
                    "policy.store, or remove this one"
                )


def teacher_cross_entropy(tools: PolicyTools) -> float | None:
    """Mean -log p of the first gold answers' tokens, in nats: differs between teachers and data sets.

    A name would not: the weights behind it may have changed.  None for a teacher that gives no log-probabilities of tokens.
    """
    if tools.scorer is None:
        return None
    ordered = [item.sequence for step in range(MARK_SEQUENCES) for item in tools.gold.all_items(step)]
    found = tools.scorer.statistics(ordered[:MARK_SEQUENCES], ("teacher_logprob",))
    return -float(torch.cat(found["teacher_logprob"]).double().mean())


def _key(example: Example) -> Key:
    """What an answer belongs to: the sample, which names its stream, and the prompt to the token."""
    prompt = ",".join(map(str, example.prompt_ids))
    return example.sample, hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
