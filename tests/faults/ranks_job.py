"""What each process does in the tests that start several, by torchrun; process 1 is the one to which things happen."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from redistill import files
from redistill.cli import main
from tests.faults.instants import at_call, spread

RANK = int(os.environ.get("RANK", "0"))


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def planted() -> None:
    raise TypeError("planted")


FATES: dict[str, Callable[[], None]] = {
    "raises": planted,
    "is killed": lambda: send(signal.SIGKILL),
    "is stopped": lambda: send(signal.SIGSTOP),
}


def stopped(recipe: Path, count: int) -> None:
    """A run that nothing happens to, and `count` runs with SIGTERM to process 1 alone, each then gone on with."""
    folder = recipe.parent
    with at_call(None, lambda: None) as calls:
        assert main(["run", str(recipe), "--out", str(folder / "straight")]) == 0
    for trial, instant in enumerate(spread(calls.number, count)):
        command = ["run", str(recipe), "--out", str(folder / f"trial-{trial}")]
        with at_call(instant, lambda: send(signal.SIGTERM)) if RANK == 1 else nullcontext() as calls:
            code = main(command)
        files.write_json(folder / f"code-{trial}-{RANK}.json", {"code": code, "where": calls.where if calls else None})
        torch.distributed.barrier()
        assert main(command) == 0


def dead(recipe: Path, fate: str, place: str) -> None:
    """A run in which process 1 meets its fate when it first calls the function `place`."""

    def act() -> None:
        files.write_json(recipe.parent / "fate.json", time.time())
        FATES[fate]()

    with at_call(place, act) if RANK == 1 else nullcontext():
        sys.exit(main(["run", str(recipe), "--out", str(recipe.parent / "run")]))


if __name__ == "__main__":
    assert int(os.environ["WORLD_SIZE"]) == 2
    torch.cuda.is_available = lambda: False
    if sys.argv[1] == "stopped":
        stopped(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        dead(Path(sys.argv[2]), *sys.argv[3:])
