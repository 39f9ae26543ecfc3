"""Training on the teacher's text, which is generated once and stored."""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, TypedDict, cast

import torch

from redistill.contracts import Example, Needs, Sampling, TokenSequence
from redistill.errors import DataError
from redistill.policies.generated import answered, answers, check_sampling
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyNode, PolicyTools, Stateless
from redistill.records import Json
from redistill.storage import files
from redistill.storage.redaction import plain_line

FILE = "teacher-responses.jsonl"
STREAM = "teacher-response"  # the name of the random numbers of answers
TEACHER_MARK = "teacher_cross_entropy"
MARK_SEQUENCES = 8
SAME_TEACHER_NATS = 0.01  # tolerance, since rounding errors differ between machines and batches

Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class TeacherGenerated(PolicyNode):
    r"""Returns the teacher's answer to each prompt: sequence-level distillation.

    .. math:: y \sim p(\cdot \mid x)

    y is the answer, x the prompt, and p the teacher.  Source: SeqKD (Kim and Rush, arXiv 1606.07947).  The answers to the
    prompts of several steps are generated at once.  All answers are stored in a file, from which later epochs and resumed
    runs read them.

    Args:
        temperature: Sampling temperature, > 0.
        top_p: Nucleus probability, in (0, 1]; 1 keeps all tokens of the vocabulary.
        store: Path of the file of answers.  Runs with the same teacher, data and seed can share the file, one after the
            other.  If None, the file is teacher-responses.jsonl in the run folder.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> TeacherGenerated(temperature=0.7).needs.teacher_text
        True
        >>> TeacherGenerated(top_p=0.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: top_p = 0.0: must lie in (0, 1]; 1 keeps every class
    """

    temperature: float = 1.0
    top_p: float = 1.0
    store: str | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_p)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(temperature=0.7, top_p=0.9))

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, teacher_text=True)

    @property
    def teacher_sampling(self) -> Sampling:
        """How the teacher's answers are sampled."""
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    def bind(self, tools: PolicyTools) -> "TeacherSource":
        return TeacherSource(self, tools)


class TeacherSource(Stateless):
    """Returns stored answers of the teacher, and generates missing answers.

    Missing answers are generated in blocks, which include prompts of later steps.  Checkpoints do not contain the answers.  A
    resumed run reads them from the file, or generates them again with identical tokens.
    """

    def __init__(self, settings: TeacherGenerated, tools: PolicyTools) -> None:
        assert tools.teacher is not None, "a teacher that generates text is required"
        self._sampling = settings.teacher_sampling
        self._tools, self._generate = tools, tools.teacher.generate
        path = Path(settings.store) if settings.store else tools.folder and tools.folder / FILE
        self._store = self._unread_store = ResponseStore(path, self._sampling, tools) if path else None
        self._answers: dict[Key, tuple[int, ...]] = {}

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        if self._unread_store is not None:
            self._answers, self._unread_store = self._unread_store.read(), None
        # `_unanswered` uses the items of all processes, so that all processes generate at the same steps.
        if self._unanswered(step):
            self._generate_block(self._block(step))
        return [answered(item.example, self._answers[_key(item.example)], "teacher") for item in items]

    def _block(self, step: int) -> list[Example]:
        """Return the examples whose answers are generated next.

        These are the examples of this step and of later steps that have no stored answer.  Examples of later steps are
        added until the generation batch of every process is full.
        """
        size = self._tools.batch_size * self._tools.processes.world
        now = self._unanswered(step)
        block = dict(now)
        for later in range(step + 1, self._tools.updates):
            if len(block) >= size:
                break
            block |= self._unanswered(later)
        return list(block.values())[: max(size, len(now))]

    def _unanswered(self, step: int) -> dict[Key, Example]:
        examples = {_key(item.example): item.example for item in self._tools.gold.all_items(step)}
        return {key: example for key, example in examples.items() if key not in self._answers}

    def _generate_block(self, block: Sequence[Example]) -> None:
        """Generate the teacher's answers to the examples in `block`, and store them.

        Each process generates a part of the answers.
        """
        tools = self._tools
        mine = answers(tools.gold.part(block), self._generate, self._sampling, "teacher", tools, STREAM)
        generated = dict(tools.processes.gather([(_key(sequence), sequence.response_ids) for sequence in mine]))
        if self._store is not None and tools.processes.is_main:
            self._store.append(generated)
        self._answers.update(generated)


class _Answer(TypedDict):
    """A line of the file of answers.

    `sample` is the index of the training example, `prompt` a hash of its prompt, and `token_ids` the answer.
    """

    sample: int
    prompt: str
    token_ids: Sequence[int]


def _is_answer(line: Json) -> bool:
    """Return whether a line of the file has the keys and the types of an `_Answer`."""
    if not isinstance(line, Mapping):
        return False
    sample, prompt, ids = (line.get(name) for name in ("sample", "prompt", "token_ids"))
    return isinstance(sample, int) and isinstance(prompt, str) and isinstance(ids, list) and all(map(_is_token, ids))


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class ResponseStore:
    """A file of answers: a header line, then one answer per line.

    The header contains the settings that the answers depend on.

    Raises:
        DataError: the file does not contain teacher answers, or its answers were generated with other settings or by another
            teacher.
    """

    def __init__(self, path: Path, sampling: Sampling, tools: PolicyTools) -> None:
        self._path, self._sampling, self._tools = path, sampling, tools

    def read(self) -> dict[Key, tuple[int, ...]]:
        """Return the token ids of all answers in the file, by key.

        A key consists of the index of the training example and a hash of its prompt.  Every process must call this method;
        the main process reads the file.
        """
        processes, lines = self._tools.processes, list[Json]()
        if processes.is_main and self._path.exists():
            lines = files.read_lines(self._path) or [None]  # an existing empty file is invalid
        lines = processes.gather(lines)
        if lines:
            self._check(lines[0])
            if processes.is_main:
                files.rewrite_lines(self._path, lines)  # removes an incomplete last line before lines are appended
        if faulty := [number for number, line in enumerate(lines[1:], 2) if not _is_answer(line)]:
            raise DataError(
                f"{self._path}:{faulty[0]}: is not an answer of a teacher; remove the line, or set policy.store to another file"
            )
        return {(a["sample"], a["prompt"]): tuple(a["token_ids"]) for a in cast("list[_Answer]", lines[1:])}

    def append(self, answers: Mapping[Key, tuple[int, ...]]) -> None:
        """Append answers to the file, which is created if it does not exist."""
        lines = [_Answer(sample=sample, prompt=prompt, token_ids=ids) for (sample, prompt), ids in answers.items()]
        if self._path.exists():
            files.append_lines(self._path, lines)
        else:
            files.rewrite_lines(self._path, [self._header, *lines])

    @cached_property
    def _header(self) -> Mapping[str, Json]:
        tools = self._tools
        return {
            "seed": tools.seed,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "response_tokens": tools.response_tokens,
            "end_ids": list(tools.end_ids),  # a list, as it is in the file
            TEACHER_MARK: teacher_cross_entropy(tools),
        }

    def _check(self, found: Json) -> None:
        if not (isinstance(found, Mapping) and found.keys() == self._header.keys()):
            raise DataError(f"{self._path}: is not a file of teacher answers; set policy.store to another file")
        for name, mine in self._header.items():
            given, tolerance = found[name], SAME_TEACHER_NATS if name == TEACHER_MARK else 0.0
            is_close = isinstance(given, float) and isinstance(mine, float) and abs(given - mine) <= tolerance
            if given != mine and not is_close:
                shown = plain_line(reprlib.repr(given))
                raise DataError(
                    f"{self._path}: its answers have {name} = {shown}, and this run has {mine}; set policy.store to another "
                    "file, or delete this file"
                )


def teacher_cross_entropy(tools: PolicyTools) -> float | None:
    """Return the teacher's mean -log p over the targets of the first gold answers.

    The mean, in nats, is over the first 8 answers (`MARK_SEQUENCES`) in the order of training.  For an example that has
    only a prompt, the targets are the tokens of the prompt after the first.

    The mean is stored with the teacher's answers.  It identifies the teacher and the data: a run with another mean must not
    use these answers.  The name of the model would not be sufficient, since it does not identify the weights.

    The result is None if the teacher does not provide log-probabilities of tokens.
    """
    if tools.scorer is None:
        return None
    ordered = [item for step in range(MARK_SEQUENCES) for item in tools.gold.all_items(step)][:MARK_SEQUENCES]
    read = [item.gold or _prompt_sequence(item.example) for item in ordered if item.gold or len(item.example.prompt_ids) > 1]
    if not read:
        return None
    found = tools.scorer.statistics(read, ("teacher_logprob",))
    return -float(torch.cat(found["teacher_logprob"]).double().mean())


def _prompt_sequence(example: Example) -> TokenSequence:
    """Return a prompt as a sequence with all tokens except the first as targets."""
    ids = example.prompt_ids
    supervised = (False,) + (True,) * (len(ids) - 1)
    return TokenSequence(sample=example.sample, token_ids=ids, supervised=supervised, origin="dataset")


def _key(example: Example | TokenSequence) -> Key:
    """Return the key of an answer.

    The key consists of the index of the training example and a hash of the prompt's tokens.
    """
    prompt = ",".join(map(str, example.prompt_ids))
    return example.sample, hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
