"""Runs on the CPU and on the simulated device; `python -m tests.simulated_cuda.trials FOLDER` prints their results as JSON.

They have a process of their own, since the hooks of the device must be loaded before torch.
"""

import sys
from pathlib import Path

from tests.simulated_cuda import hooks

FOLDER = Path(sys.argv[-1])
if __name__ == "__main__":
    hooks.load(FOLDER)

import json  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import redirect_stderr, redirect_stdout  # noqa: E402
from typing import Any  # noqa: E402

from accelerate.state import AcceleratorState  # noqa: E402

from redistill.config.methods import METHODS  # noqa: E402
from redistill.config.run import Run  # noqa: E402
from redistill.estimate import estimate  # noqa: E402
from redistill.runs.run import evaluate_run, train_student  # noqa: E402
from redistill.storage import files  # noqa: E402
from redistill.training import loop  # noqa: E402
from tests.simulated_cuda.device import Counts, simulated_cuda  # noqa: E402
from tests.simulated_cuda.faults import FAULTS  # noqa: E402
from tests.worlds import tiny_run  # noqa: E402

UPDATES = 3
TRAINING = {"batch_size": 4, "log_every": 1}
LORA = {"lora": {"rank": 2, "alpha": 4}, "gradient_checkpointing": True}
TRIALS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "kd": {"method": "kd", "evaluation": {"measure": {"prompts": 0}}},  # its waits are those of one batch of answers
    "minillm": {"method": "minillm", "policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 8}},
    "lora": {"method": "mgsr", "student": LORA},
    "bf16": {"method": "mgsr", "training": {"precision": "bf16"}},
}


EVALUATED = ("kd", "mgsr")


def run_of(trial: str, out: str, updates: int = UPDATES) -> Run:
    sections = dict(TRIALS[trial])
    length = dict.fromkeys(("updates", "save_every", "evaluate_every"), updates)
    sections["training"] = {**TRAINING, **length, **sections.get("training", {})}
    if sections["method"] == "sft":
        sections["teacher"] = None
    return tiny_run(FOLDER, out=f"{trial}-{out}", **sections)


def losses(folder: Path) -> list[list[float]]:
    names = ("loss", "divergence", "sft", "span", "cross_entropy")
    return [[line[name] for name in names if line.get(name) is not None] for line in files.read_lines(folder / "metrics.jsonl")]


def on_the_device(work: Callable[[], Any]) -> Counts:
    AcceleratorState._reset_state(True)
    try:
        with simulated_cuda() as counts:
            work()
    finally:
        AcceleratorState._reset_state(True)
    return counts


def counted(counts: Counts) -> dict[str, dict[str, int]]:
    return {"syncs": dict(counts.syncs), "copies": dict(counts.copies)}


def compared(trial: str) -> dict[str, Any]:
    """The losses of a run on both devices, and the counts of training; for some, answers and counts of evaluation as well."""
    cpu, device = run_of(trial, "cpu"), run_of(trial, "device")
    train_student(cpu)
    found: dict[str, Any] = {"training": counted(on_the_device(lambda: train_student(device)))}
    folders = {"cpu": cpu.folder, "device": device.folder}
    found |= {name: losses(folder) for name, folder in folders.items()}
    found["cost"] = files.read_json(device.folder / "run.json")["cost"]
    if trial in EVALUATED:
        evaluate_run(cpu)
        found["evaluation"] = counted(on_the_device(lambda: evaluate_run(device)))
        answers = [files.read_lines(folder / "responses" / "toy-seed10.jsonl") for folder in folders.values()]
        texts = [[line["response"] for line in lines] for lines in answers]
        found["equal answers"] = texts[0] == texts[1]
    return found


def resumed() -> dict[str, Any]:
    """A run that is stopped after an update and resumed, both on the device, against one that is not stopped."""
    whole, stopped = run_of("gkd", "whole"), run_of("gkd", "stopped")
    for run in (whole, stopped):
        object.__setattr__(run.training, "save_every", 1)
    on_the_device(lambda: train_student(whole))
    log = loop._log_update

    def stop(parts: Any, state: Any, *rest: Any) -> None:
        log(parts, state, *rest)
        if state.step == 2:
            raise KeyboardInterrupt

    loop._log_update = stop
    try:
        on_the_device(lambda: train_student(stopped))
    except KeyboardInterrupt:
        pass
    finally:
        loop._log_update = log
    on_the_device(lambda: train_student(stopped))
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    return {"equal": weights[0] == weights[1]}


def estimated() -> dict[str, Any]:
    found: list[Any] = []
    on_the_device(lambda: found.append(estimate(run_of("mgsr", "estimate"))))
    return {"peak_bytes": found[0].as_json()["memory"]["peak_bytes"]}


def faulty(name: str) -> dict[str, Any]:
    """What a planted fault leads to: an error, or the counts of a run and its cost."""
    fault = FAULTS[name]
    run = run_of(fault.trial, f"fault {name}", updates=fault.updates)
    try:
        with fault.planted():
            counts = on_the_device(lambda: train_student(run))
        return {**counted(counts), "cost": files.read_json(run.folder / "run.json")["cost"]}
    except (RuntimeError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    with (FOLDER / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        found = {trial: compared(trial) for trial in TRIALS}
        found |= {"resume": resumed(), "estimate": estimated()}
        found["faults"] = {name: faulty(name) for name in FAULTS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
