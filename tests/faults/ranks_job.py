"""What each process does in the tests that start several, by torchrun; process 1 is the one to which things happen."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

import redistill
from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.runs import run as runs
from redistill.storage import files
from redistill.training import checkpoint
from redistill.training.loop import train
from redistill.training.parts import TrainingState
from tests.faults.counts import WHOLE
from tests.faults.instants import at_call, spread_over
from tests.worlds import GPT2, tiny_run

RANK = int(os.environ.get("RANK", "0"))
HANG_S = 3600.0 if WHOLE else 600.0  # what hangs must end some time; a healthy job takes a part of it
UPDATES = 4
WITH_DROPOUT = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
BUFFERED = {"kind": "adaptive", "threshold": 0.9, "capacity": 4, "source": {"kind": "revised"}}


def recipe(folder: Path, placement: str = "auto") -> Path:
    """A run with all that can be interrupted: a buffer, revisions, validations, an evaluation."""
    settings = {"updates": UPDATES, "batch_size": 4, "micro_batch_size": 1, "evaluate_every": 2}
    config = tiny_run(folder, "mgsr", config=WITH_DROPOUT, policy=BUFFERED, training=settings, placement=placement)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


def torchrun(*arguments: Any, shutdown_s: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes of this module."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--shutdown-timeout", str(shutdown_s), "-m", __name__, *map(str, arguments)]
    root, package = Path(__file__).parents[2], Path(redistill.__file__).parents[1]
    paths = {"PYTHONPATH": f"{package}{os.pathsep}{root}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = {**os.environ, **paths, **environment}
    return subprocess.run(command, env=told, cwd=root, capture_output=True, text=True, timeout=HANG_S, check=False)


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
    folder, states = recipe.parent, _states()
    with at_call(None, lambda: None, with_phases=RANK == 1) as calls:
        assert main(["run", str(recipe), "--out", str(folder / "straight")]) == 0
    instants = spread_over(calls.phases, count) if RANK == 1 else [0] * count
    for trial, instant in enumerate(instants):
        out, sent_at = folder / f"trial-{trial}", folder / f"sent-{trial}.json"
        command = ["run", str(recipe), "--out", str(out)]

        def act(sent_at: Path = sent_at) -> None:
            files.write_json(sent_at, time.time())
            send(signal.SIGTERM)

        states.clear()
        with at_call(instant, act) if RANK == 1 else nullcontext() as calls_here:
            code = main(command)
        ended = {"code": code, "time": time.time(), "step": states[0].step if states else 0}
        if calls_here is not None:
            ended |= {"where": calls_here.where, "phase": calls_here.phase}
        saved = checkpoint.load(out / "checkpoints")
        ended["saved"] = 0 if saved is None else saved.step
        files.write_json(folder / f"ended-{trial}-{RANK}.json", ended)
        torch.distributed.barrier()
        assert main(command) == 0


def _states() -> list[TrainingState]:
    """Where training stands in this process, for each time that it is begun."""
    states = list[TrainingState]()

    def noted(parts: Any, settings: Any, optimiser: Any, state: TrainingState) -> TrainingState:
        states.append(state)
        return train(parts, settings, optimiser, state)

    runs.train = noted
    return states


def complete(recipe: Path, out: str) -> None:
    """A run that nothing happens to; it resumes if the folder has a part of it."""
    sys.exit(main(["run", str(recipe), "--out", str(recipe.parent / out)]))


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
    elif sys.argv[1] == "complete":
        complete(Path(sys.argv[2]), sys.argv[3])
    else:
        dead(Path(sys.argv[2]), *sys.argv[3:])
