"""What a replay buffer costs at each update, beside the snapshot that it made before.

    python -m benchmarks.replay_buffer

An update takes the state of the policy, as the training loop does to undo an interrupted update, and then adds and samples a
batch.  The rival takes the state as JSON, with a list of tokens for each sequence, as commit 3d89816 did.  Generation is not
measured: the sequences of a batch exist before.  The size in a checkpoint and the time to convert the state to tensors and
back, once per checkpoint, are measured too.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from benchmarks import measuring
from redistill.contracts import StateValue, TokenSequence
from redistill.policies.buffered import BufferedSource, SequenceBuffer
from redistill.policies.order import GoldItem
from redistill.policies.source import Stateless
from redistill.policies.state import restore, store
from redistill.randomness import generator
from redistill.storage import files, tensors
from redistill.testing.fixture import make_fixture

BATCH, VOCABULARY, PROMPT_TOKENS, UPDATES = 16, 50_257, 64, 20


class Ready(Stateless):
    """Returns sequences that were made before, in place of generated ones."""

    def __init__(self, batches: Sequence[list[TokenSequence]]) -> None:
        self._batches = batches

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return self._batches[step % len(self._batches)]


def main() -> None:
    options = measuring.arguments(
        __doc__ or "", capacity={"type": int, "default": 5000}, tokens={"type": int, "default": 512, "help": "of a sequence"}
    )
    capacity, tokens = (100, 96) if options.quick else (options.capacity, options.tokens)
    source, steps, items = filled(capacity, tokens)
    state = source.state_dict()

    def updates(snapshot: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(UPDATES):
                snapshot()
                source.sequences(next(steps), items)

        return work

    rivals = {"references": updates(source.state_dict), "JSON": updates(lambda: json_state(source.state_dict()))}
    measured = measuring.interleaved(rivals, options.repetitions or 5)
    stored = store(state)
    once = measuring.interleaved({"store": lambda: store(state), "restore": lambda: restore(stored)}, options.repetitions or 3)
    results = {
        "ms_per_update": {
            name: {key: 1000 * found[key] / UPDATES for key in ("median", "low", "high")} for name, found in measured.items()
        },
        "sequences_per_update": BATCH,
        "ms_per_checkpoint": {name: 1000 * found["median"] for name, found in once.items()},
        "bytes": {
            "tensors": tensors.num_bytes(stored.tensors),
            "state.json": len(files.json_bytes([stored.values, stored.entries])),
            "as JSON": len(files.json_bytes(json_state(state))),
        },
    }
    measuring.write("replay_buffer", results, quick=options.quick)


def filled(capacity: int, tokens: int) -> tuple[BufferedSource, "count[int]", list[GoldItem]]:
    """A policy whose buffer is full, the numbers of its next steps, and the items of a batch."""
    tools = make_fixture().tools
    batches = [[sequence(tokens, number * BATCH + place) for place in range(BATCH)] for number in range(capacity // BATCH + 1)]
    source = BufferedSource(Ready(batches), SequenceBuffer(capacity, tools))
    items = tools.gold.items(0)[:1] * BATCH
    for step in range(len(batches)):
        source.sequences(step, items)
    return source, count(len(batches)), items


def sequence(tokens: int, number: int) -> TokenSequence:
    """A random sequence, as the student would generate it."""
    ids = generator(1, "replay-benchmark", number).integers(0, VOCABULARY, tokens).tolist()
    supervised = tuple(position >= PROMPT_TOKENS for position in range(tokens))
    return TokenSequence(sample=number, token_ids=tuple(ids), supervised=supervised, origin="student")


def json_state(state: Mapping[str, StateValue]) -> list[dict[str, Any]]:
    """The state of the buffer as commit 3d89816 took it before every update."""
    buffer: Any = state["buffer"]
    return [
        {
            "step": step,
            "sample": sequence.sample,
            "origin": sequence.origin,
            "token_ids": sequence.token_ids,
            "supervised": [int(is_target) for is_target in sequence.supervised],
        }
        for step, sequence in zip(buffer["steps"], buffer["sequences"], strict=True)
    ]


if __name__ == "__main__":
    main()
