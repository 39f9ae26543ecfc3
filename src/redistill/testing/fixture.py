"""Fixture for tests of policies: two random models and random prompts.

The models have a few thousand parameters.  No files, downloads or tokenizers are used.  The student is not trained between
steps.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from threading import Barrier, BrokenBarrierError
from typing import TypeVar, cast

import torch

from redistill.contracts import ONE_PROCESS, Example, Processes
from redistill.generation.local import LocalEngine
from redistill.interfaces import Gather, Value
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
GATHER_TIMEOUT_S = 120.0  # how long a process waits in gather for the others

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fixture:
    """Random training examples, and the objects that policies use (`PolicyTools`).

    The objects include an engine and a teacher, which generate text with two random models.  The objects are created as in
    a run with one process.
    """

    examples: tuple[Example, ...]
    tools: PolicyTools

    def policy(self, node: PolicyNode, processes: Processes = ONE_PROCESS, **tools: object) -> Policy:
        """Create a policy from its configuration.

        Args:
            node: Configuration of the policy.
            processes: Rank and number of processes; each process gets different examples of a batch.
            tools: Values that replace fields of `PolicyTools`, by name of the field.
        """
        gold = GoldBatches(self.examples, batch_size=BATCH_SIZE, seed=SEED, processes=processes)
        return Policy(gold, node.bind(PolicyTools(**vars(self.tools) | {"gold": gold, "processes": processes} | tools)))


@cache
def make_fixture() -> Fixture:
    """Return random training examples, and the objects that policies use.

    The objects (`PolicyTools`) include an engine and a teacher, which generate text with two random models.  Every call returns
    the same `Fixture`.
    """
    teacher, student = (fresh_model({**MODEL, "initializer_range": 0.5}, seed).eval() for seed in (1, 2))
    engine = partial(LocalEngine, vocabulary=VOCABULARY, end_ids=(END,), pad_id=END, batch_size=Halving("batch_size", 64))
    local = LocalTeacher(teacher, vocabulary=VOCABULARY, device="cpu", engine=engine(teacher))
    read_student = torch.no_grad()(StudentModule(student, vocabulary=VOCABULARY).eval().rows)
    examples = tuple(map(_example, range(NUM_EXAMPLES)))
    tools = PolicyTools(
        engine=engine(student, teacher=teacher),
        teacher=local,
        scorer=Scorer(read_student, local, pad_id=END, batch_size=64),
        gold=GoldBatches(examples, batch_size=BATCH_SIZE, seed=SEED),
        updates=UPDATES,
        end_ids=(END,),
        response_tokens=RESPONSE_TOKENS,
        batch_size=64,
        seed=SEED,
    )
    return Fixture(examples, tools)


def in_processes(world: int, work: Callable[[int, Gather], Result]) -> list[Result]:
    """Run `work(rank, gather)` for each rank in threads that simulate processes.

    `gather` is a collective operation: it waits until all ranks have called it. It returns the lists of all ranks, concatenated
    in order of rank.  Each rank gets its own deep copy of the values, since real processes share no objects.

    Args:
        world: Number of simulated processes.
        work: Function of a rank and of `gather`; it is called once per rank.

    Returns:
        The results in order of rank.

    Raises:
        BrokenBarrierError: one rank calls `gather` and another rank does not.
    """
    slots: list[list[object]] = [[] for _ in range(world)]
    barrier = Barrier(world, timeout=GATHER_TIMEOUT_S)

    def run(rank: int) -> Result:
        def gather(values: list[Value], /) -> list[Value]:
            slots[rank] = [*values]
            barrier.wait()
            joined = deepcopy([value for slot in slots for value in slot])
            barrier.wait()  # no rank overwrites its slot before all have read it
            return cast("list[Value]", joined)

        try:
            return work(rank, gather)
        except BaseException:
            barrier.abort()  # otherwise the other ranks would wait until the timeout
            raise

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(run, rank) for rank in range(world)]
    for future in sorted(futures, key=lambda each: isinstance(each.exception(), BrokenBarrierError)):
        future.result()  # raises the original error before the BrokenBarrierErrors that it caused
    return [future.result() for future in futures]


def _example(sample: int) -> Example:
    """Create an example: a random prompt, and a random answer with an end token."""
    rng = generator(SEED, "example", sample)
    prompt, answer = (tuple(rng.integers(1, VOCABULARY, rng.integers(2, 6)).tolist()) for _ in range(2))
    record = Record(record_id=f"fixture:{sample}", prompt=RawPrompt(" ".join(map(str, prompt))), references=("-",))
    supervised = (False,) * len(prompt) + (True,) * (len(answer) + 1)
    return Example(sample=sample, record=record, prompt_ids=prompt, token_ids=(*prompt, *answer, END), supervised=supervised)
