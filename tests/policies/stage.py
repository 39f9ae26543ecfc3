"""A small stage for policies: two random models that end their answers now and then, and prompts for them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from redistill.contracts import Example, TokenSequence
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.generation.generate import generate
from redistill.models.initialise import fresh_model
from redistill.models.student import StudentModule
from redistill.policies import GoldBatches, Policy, PolicyConfig, PolicyTools, Revision
from redistill.records import Instruction, Record
from redistill.teachers.local import LocalTeacher
from tests.worlds import GPT2, gpt2_tokenizer, rows

RESPONSE_TOKENS = 10
SEED = 4
UPDATES = 12

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    tokenizer: PreTrainedTokenizerFast
    examples: list[Example]
    tools: PolicyTools
    revisions: list[Revision]

    def gold(self, *, batch_size: int = 8, rank: int = 0, world: int = 1) -> GoldBatches:
        return GoldBatches(self.examples, batch_size=batch_size, seed=SEED, rank=rank, world=world)

    def policy(self, node: PolicyConfig, *, batch_size: int = 8, rank: int = 0, world: int = 1, **tools: Any) -> Policy:
        gold = self.gold(batch_size=batch_size, rank=rank, world=world)
        return Policy(gold, node.bind(replace(self.tools, gold=gold, is_main=rank == 0, **tools)))


def make_stage(make_tokenizer: Callable[[], PreTrainedTokenizerFast] = gpt2_tokenizer, num_examples: int = 20) -> Stage:
    tokenizer = make_tokenizer()
    records = [
        Record(record_id=f"r:{i}", prompt=Instruction(row["instruction"], row["input"]), references=(row["output"],))
        for i, row in enumerate(rows(num_examples))
    ]
    config = TokenizeConfig(prompt_tokens=200, response_tokens=RESPONSE_TOKENS)
    examples, _ = tokenize_training(records, tokenizer, config, SEED)
    models = [ending_model(tokenizer, seed) for seed in (1, 2)]
    student = StudentModule(models[1], vocabulary=len(tokenizer)).eval()
    end_ids, pad_id = (int(tokenizer.eos_token_id),), int(tokenizer.pad_token_id)
    revisions: list[Revision] = []
    writing: dict[str, Any] = {"seed": SEED, "end_ids": end_ids, "pad_id": pad_id, "batch_size": 64}
    tools = PolicyTools(
        generate=partial(generate, models[1], **writing),
        generate_teacher=partial(generate, models[0], **writing),
        generate_mixture=lambda requests, sampling, teacher_share: generate(
            models[1], requests, sampling, teacher=models[0], teacher_share=teacher_share, **writing
        ),
        student_rows=torch.no_grad()(student.rows),
        teacher=LocalTeacher(models[0], vocabulary=len(tokenizer), device="cpu"),
        gold=GoldBatches(examples, batch_size=8, seed=SEED),
        updates=UPDATES,
        end_ids=end_ids,
        pad_id=pad_id,
        response_tokens=RESPONSE_TOKENS,
        score_batch_size=64,
        seed=SEED,
        on_revision=revisions.append,
    )
    return Stage(tokenizer, examples, tools, revisions)


def ending_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:
    """A random GPT-2 whose last bias points at the end token, which so has a fair chance at every position."""
    size = {"vocab_size": len(tokenizer), "n_layer": 2, "initializer_range": 0.3}
    model = fresh_model({**GPT2, **size}, seed)
    direction_D = torch.nn.functional.normalize(torch.ones(GPT2["n_embd"]), dim=0)
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(2.0 * direction_D)
        model.transformer.wte.weight[tokenizer.eos_token_id] = 2.5 * direction_D
    return model


def in_processes(world: int, work: Callable[[int, Callable[[list[Any]], list[Any]]], Result]) -> list[Result]:
    """What each of `world` processes makes of `work(rank, gather)`: threads that meet whenever they gather.

    What comes out of a gather is a copy, as it is where processes send it to one another.
    """
    shelf: list[list[Any]] = [[] for _ in range(world)]
    barrier = Barrier(world, timeout=60)

    def process(rank: int) -> Result:
        def gather(values: list[Any]) -> list[Any]:
            shelf[rank] = values
            barrier.wait()
            joined = deepcopy([value for share in shelf for value in share])
            barrier.wait()
            return joined

        try:
            return work(rank, gather)
        except BaseException:
            barrier.abort()  # else the others would wait for this one
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(process, range(world)))


def ids(sequences: tuple[TokenSequence, ...]) -> list[tuple[int, str, tuple[int, ...]]]:
    """What tells sequences apart, as plain values."""
    return [(sequence.sample, sequence.origin, sequence.token_ids) for sequence in sequences]
