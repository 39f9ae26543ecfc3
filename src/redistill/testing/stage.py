"""A stage on which policies are tried: two random models of a few thousand weights, and prompts of random tokens.

Nothing is read, downloaded or tokenized, and nothing is trained: the student stays as it is from step to step.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import torch

from redistill.contracts import ONE_PROCESS, Example, Processes
from redistill.generation.local import LocalEngine
from redistill.models.initialise import fresh_model
from redistill.models.student import StudentModule
from redistill.policies.order import GoldBatches
from redistill.policies.policy import Policy
from redistill.policies.scorer import Scorer
from redistill.policies.source import PolicyNode, PolicyTools
from redistill.processes.memory import Halving
from redistill.randomness import generator
from redistill.records import RawPrompt, Record
from redistill.teachers.local import LocalTeacher

VOCABULARY, END = 24, 0
NUM_EXAMPLES, BATCH_SIZE, RESPONSE_TOKENS, UPDATES, SEED = 14, 4, 6, 6, 4
MODEL = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
PATIENCE_S = 120.0  # how long a process waits for the others to gather too

Gather = Callable[[list[Any]], list[Any]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """The examples, and the tools of a single process."""

    examples: tuple[Example, ...]
    tools: PolicyTools

    def policy(self, node: PolicyNode, processes: Processes = ONE_PROCESS, **tools: Any) -> Policy:
        """A policy in its first state, as one of `processes` has it."""
        gold = GoldBatches(self.examples, batch_size=BATCH_SIZE, seed=SEED, processes=processes)
        return Policy(gold, node.bind(replace(self.tools, gold=gold, processes=processes, **tools)))


@cache
def make_stage() -> Stage:
    """The stage; the same every time."""
    teacher, student = (fresh_model({**MODEL, "initializer_range": 0.5}, seed).eval() for seed in (1, 2))
    settings: dict[str, Any] = {"vocabulary": VOCABULARY, "end_ids": (END,), "pad_id": END}
    engine = LocalEngine(student, teacher=teacher, batch_size=Halving("batch_size", 64), **settings)
    own_engine = LocalEngine(teacher, batch_size=Halving("batch_size", 64), **settings)
    local = LocalTeacher(teacher, vocabulary=VOCABULARY, device="cpu", engine=own_engine)
    examples = tuple(_example(sample) for sample in range(NUM_EXAMPLES))
    tools = PolicyTools(
        engine=engine,
        teacher=local,
        scorer=Scorer(
            torch.no_grad()(StudentModule(student, vocabulary=VOCABULARY).eval().rows), local, pad_id=END, batch_size=64
        ),
        gold=GoldBatches(examples, batch_size=BATCH_SIZE, seed=SEED),
        updates=UPDATES,
        end_ids=(END,),
        response_tokens=RESPONSE_TOKENS,
        batch_size=64,
        seed=SEED,
    )
    return Stage(examples, tools)


def in_processes(world: int, work: Callable[[int, Gather], Result]) -> list[Result]:
    """What each of `world` processes makes of `work(rank, gather)`; they are threads that meet whenever they gather.

    What comes out of a gather is a copy, as it is where processes send it to one another.

    Raises:
        BrokenBarrierError: one of them gathers where another does not.
    """
    slots: list[list[Any]] = [[] for _ in range(world)]
    meeting = Barrier(world, timeout=PATIENCE_S)

    def run(rank: int) -> Result:
        def gather(values: list[Any]) -> list[Any]:
            slots[rank] = values
            meeting.wait()
            joined = deepcopy([value for slot in slots for value in slot])
            meeting.wait()  # nobody fills a slot again before all have read it
            return joined

        try:
            return work(rank, gather)
        except BaseException:
            meeting.abort()  # else the others would wait for this one
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(run, rank) for rank in range(world)]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error  # the one that made the others' meeting fail, where there is one
    return [future.result() for future in futures]


def _example(sample: int) -> Example:
    """A prompt and an answer of random tokens, with the end token behind it."""
    rng = generator(SEED, "example", sample)
    prompt, answer = (tuple(rng.integers(1, VOCABULARY, rng.integers(2, 6)).tolist()) for _ in range(2))
    record = Record(record_id=f"stage:{sample}", prompt=RawPrompt(" ".join(map(str, prompt))), references=("-",))
    return Example(
        sample=sample,
        record=record,
        prompt_ids=prompt,
        token_ids=(*prompt, *answer, END),
        supervised=(False,) * len(prompt) + (True,) * (len(answer) + 1),
    )
