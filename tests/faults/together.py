"""Several processes of one job, forked after the imports: what torchrun starts, without its seconds."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from redistill.config.run import load_config
from redistill.evaluation.scores import EvaluationConfig
from redistill.models.load import ModelConfig
from redistill.runs.run import evaluate_model, train_student
from tests.faults.counts import WHOLE

PATIENCE_S = 3600 if WHOLE else 600


def together(world: int, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Do `work`, a function of a module, in `world` processes; returns their exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # here, as the launcher has it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=_begin, args=(rank, world, store.port, work, arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        process.kill()
    return [process.exitcode for process in processes]


def _begin(rank: int, world: int, port: int, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    """As torchrun starts a process: it learns from its environment which one it is."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    work(*arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train(recipes: Sequence[Path]) -> None:
    """Train the runs of these recipes one after the other, as one of several processes."""
    for recipe in recipes:
        with recipe.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            train_student(load_config(recipe))


def evaluate(recipe: Path, out: Path) -> None:
    """Score the untrained student of a recipe on its test sets, with its teacher, as one of several processes."""
    config = load_config(recipe)
    settings = EvaluationConfig(seeds=(10, 20), batch_size=3)
    student = ModelConfig(model=config.student.model)
    evaluate_model(student, config.data.tests, settings, config.data.tokens, out, teacher=config.teacher)
