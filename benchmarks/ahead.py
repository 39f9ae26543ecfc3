"""What generating the text of four updates at once saves (`engine.ahead`), per update, with two small random models.

    OMP_NUM_THREADS=1 python -m benchmarks.ahead [--quick]

Teacher and student have 3 layers of width 64.  An update has 8 sequences, with prompts of at most 80 tokens and answers of at
most 64.  A turn is four updates: generation (`draw`), and forward and backward pass of the student; the weights do not change.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from benchmarks import measuring
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import open_run
from redistill.training.loop import gradients
from tests.worlds import LLAMA, tiny_run

METHODS = {"forward KL on the student's text": "imitkd", "reverse KL on the student's text": "opd", "mgsr": "mgsr"}
UPDATES = 4
Work = Callable[[], object]


@contextmanager
def rival(folder: Path, method: str, ahead: int) -> Iterator[tuple[Work, Work]]:
    """Context with the work of four updates: generation alone, and generation with the passes of the student."""
    sizes = {**LLAMA, "hidden_size": 64, "intermediate_size": 128}
    tokens = {"prompt_tokens": 80, "response_tokens": 64}
    run = tiny_run(
        folder,
        method,
        config=sizes,
        engine={"ahead": ahead},
        training={"batch_size": 8, "updates": 10_000},
        data={"tokens": tokens},
    )
    with open_run(run) as opened:
        parts, steps = build_parts(opened, build_evaluator(opened, opened.models.student)), count(0, UPDATES)

        def update(*, trains: bool) -> None:
            first = next(steps)
            for step in range(first, first + UPDATES):
                parts.engine.sync(parts.learner.student.model, step)
                draw = parts.learner.objective.select(parts.policy.draw(step))
                if trains:
                    gradients(draw, parts, step)

        yield lambda: update(trains=False), lambda: update(trains=True)


def main() -> None:
    options = measuring.arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        works = {}
        for name, method in METHODS.items():
            for ahead in (1, 4):
                opened = stack.enter_context(rival(Path(folder), method, ahead))
                works |= {
                    f"{name}, ahead {ahead}, {what}": work for what, work in zip(("generation", "update"), opened, strict=True)
                }
        found = measuring.interleaved(works, 1 if options.quick else options.repetitions or 5)
    seconds = {name: each["median"] / UPDATES for name, each in found.items()}
    print("\n| method | `ahead: 1` | `ahead: 4` | ratio |\n|---|---|---|---|")
    for name in METHODS:
        one, four = (tuple(seconds[f"{name}, ahead {ahead}, {what}"] for what in ("update", "generation")) for ahead in (1, 4))
        print(f"| {name} | {one[0]:.2f} ({one[1]:.2f}) | {four[0]:.2f} ({four[1]:.2f}) | {four[0] / one[0]:.2f} |")
    measuring.write("ahead", {"seconds per update": seconds}, quick=options.quick)


if __name__ == "__main__":
    main()
