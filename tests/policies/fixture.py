"""A small fixture for policies: two random models that sometimes generate end tokens, and prompts for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerFast

from redistill.contracts import (
    ONE_PROCESS,
    EngineCapabilities,
    Example,
    Generation,
    GenerationRequest,
    Processes,
    Sampling,
    Teacher,
    TokenSequence,
)
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.generation.local import LocalEngine
from redistill.models.initialise import fresh_model
from redistill.models.student import StudentModule
from redistill.policies import GoldBatches, Policy, PolicyConfig, PolicyTools, Revision, Scorer
from redistill.policies.scorer import ReadStudent
from redistill.processes.memory import Halving
from redistill.records import Instruction, Record
from redistill.teachers.local import LocalTeacher
from redistill.testing.fixture import in_processes
from tests.worlds import GPT2, gpt2_tokenizer, rows

__all__ = ["RESPONSE_TOKENS", "SEED", "FakeEngine", "PolicyFixture", "ending_model", "ids", "in_processes", "make_fixture"]

RESPONSE_TOKENS = 10
SEED = 4
UPDATES = 12
AT_ONCE = 64


@dataclass(frozen=True)
class FakeEngine:
    """An engine, or a teacher that only generates text, whose text a function returns."""

    generate: Callable[[Sequence[GenerationRequest], Sampling], list[Generation]]
    capabilities: ClassVar[EngineCapabilities] = EngineCapabilities(mixture=True)

    def sync(self, student: torch.nn.Module, step: int) -> None:
        """Does nothing: the function uses no weights."""


@dataclass(frozen=True)
class PolicyFixture:
    tokenizer: PreTrainedTokenizerFast
    examples: list[Example]
    tools: PolicyTools
    revisions: list[Revision]
    engine_alone: LocalEngine
    """The student's engine without a teacher for mixtures."""

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def gold(self, *, batch_size: int = 8, processes: Processes = ONE_PROCESS) -> GoldBatches:
        return GoldBatches(self.examples, batch_size=batch_size, seed=SEED, processes=processes)

    def scorer(
        self, *, read_student: ReadStudent | None = None, teacher: Teacher | None = None, at_once: int = AT_ONCE
    ) -> Scorer:
        """The fixture's scorer, with the given parts replaced."""
        own = self.tools.scorer
        assert own is not None
        return Scorer(read_student or own.read_student, teacher or own.teacher, pad_id=self.pad_id, batch_size=at_once)

    def policy(
        self,
        node: PolicyConfig,
        *,
        batch_size: int = 8,
        processes: Processes = ONE_PROCESS,
        at_once: int = AT_ONCE,
        **tools: Any,
    ) -> Policy:
        """A policy in its initial state.

        Args:
            batch_size: Examples of an update.
            processes: Rank and number of processes.
            at_once: Texts that are generated and scored at once.
            tools: Fields of PolicyTools that replace the fixture's.
        """
        gold = self.gold(batch_size=batch_size, processes=processes)
        tools = {"scorer": self.scorer(at_once=at_once), "batch_size": at_once, **tools}
        return Policy(gold, node.bind(replace(self.tools, gold=gold, processes=processes, **tools)))


def make_fixture(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast] = gpt2_tokenizer, num_examples: int = 20
) -> PolicyFixture:
    tokenizer = make_tokenizer()
    records = [
        Record(record_id=f"r:{i}", prompt=Instruction(row["instruction"], row["input"]), references=(row["output"],))
        for i, row in enumerate(rows(num_examples))
    ]
    config = TokenizeConfig(prompt_tokens=200, response_tokens=RESPONSE_TOKENS)
    examples, _ = tokenize_training(records, tokenizer, config, SEED)
    teacher, student = (ending_model(tokenizer, seed) for seed in (1, 2))
    end_ids, pad_id = (int(tokenizer.eos_token_id),), int(tokenizer.pad_token_id)
    options: dict[str, Any] = {"vocabulary": None, "end_ids": end_ids, "pad_id": pad_id}
    options |= {"batch_size": Halving("generation_batch_size", AT_ONCE)}
    local = LocalTeacher(teacher, vocabulary=len(tokenizer), device="cpu", engine=LocalEngine(teacher, **options))
    read_student = torch.no_grad()(StudentModule(student, vocabulary=len(tokenizer)).eval().rows)
    revisions: list[Revision] = []
    tools = PolicyTools(
        engine=LocalEngine(student, teacher=teacher, **options),
        teacher=local,
        scorer=Scorer(read_student, local, pad_id=pad_id, batch_size=AT_ONCE),
        gold=GoldBatches(examples, batch_size=8, seed=SEED),
        updates=UPDATES,
        end_ids=end_ids,
        response_tokens=RESPONSE_TOKENS,
        batch_size=AT_ONCE,
        seed=SEED,
        on_revision=revisions.append,
    )
    return PolicyFixture(tokenizer, examples, tools, revisions, LocalEngine(student, **options))


def ending_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    """A random GPT-2 whose last bias is the direction of the end token, which so has a high probability everywhere."""
    size = {"vocab_size": len(tokenizer), "n_layer": 2, "initializer_range": 0.3}
    model = fresh_model({**GPT2, **size}, seed)
    direction_D = torch.nn.functional.normalize(torch.ones(GPT2["n_embd"]), dim=0)
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(2.0 * direction_D)
        model.transformer.wte.weight[tokenizer.eos_token_id] = 2.5 * direction_D
    return model


def ids(sequences: tuple[TokenSequence, ...]) -> list[tuple[int, str, tuple[int, ...]]]:
    """The fields that identify sequences, as plain values."""
    return [(sequence.sample, sequence.origin, sequence.token_ids) for sequence in sequences]
