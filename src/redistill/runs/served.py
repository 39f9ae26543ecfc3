"""Checks the servers of a run, and opens and identifies its served teacher.

The log-probabilities of a probe text are stored in the run folder.  A resumed run compares them with those of the server.
A small difference is accepted, since rounding differs between batches and machines.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from accelerate import Accelerator

from redistill.config.run import Run
from redistill.contracts import EngineTools
from redistill.errors import CheckpointError
from redistill.generation.vllm import VllmEngineConfig
from redistill.models.load import load_tokenizer
from redistill.processes import signals
from redistill.records import Json
from redistill.storage import files
from redistill.teachers.probe import Probe, mean_difference
from redistill.teachers.served import ServedTeacher, ServedTeacherConfig, announcement
from redistill.training import checkpoint
from redistill.training.metrics import Meter

if TYPE_CHECKING:
    from redistill.runs.opened import OpenRun

FILE = "served-teacher.json"
"""Name of the file in the run folder that identifies the model of the served teacher."""

Report = Callable[[str], None]


def check_servers(config: Run, accelerator: Accelerator, report: Report) -> None:
    """Test the servers of a run's teacher and engine before models are loaded.

    Nothing is done if neither teacher nor engine uses a server.  The main process prints which data are sent to which servers.

    Raises:
        ConfigError: a server is not allowed.
        ServerError: a server does not have the model, or has other weights than the other servers.
        VocabularyError: the server has another tokenizer.
        Interrupted: a signal arrived.
    """
    note = report if accelerator.is_main_process else _silent
    if isinstance(config.engine, VllmEngineConfig):
        backend = config.engine.connect(note)
        note(config.engine.announcement())
        backend.check(_max_tokens(config), note)
    if not isinstance(settings := config.teacher, ServedTeacherConfig):
        return
    client = settings.connect(note)
    note(announcement(settings))
    with signals.handled(at_once=True):
        tokenizer = load_tokenizer(config.student)
    settings.examine(client, tokenizer, _max_tokens(config))


def check_hosts(config: Run) -> None:
    """Check that the servers of a run's teacher and engine are allowed.

    The environment variable of an API key must be set as well.  The function does not connect to the servers.

    Raises:
        ConfigError: a server is not allowed, or the variable is not set.
    """
    if isinstance(config.teacher, ServedTeacherConfig):
        config.teacher.connect(_silent)
    if isinstance(config.engine, VllmEngineConfig):
        config.engine.connect(_silent)


def open_served(config: Run, settings: ServedTeacherConfig, tools: EngineTools, meter: Meter, note: Report) -> ServedTeacher:
    """Connect to the servers of a teacher, test them, and return the teacher.

    Args:
        config: The run.
        settings: The settings of the served teacher.
        tools: Tools of the student's engine.
        meter: Object that counts generated tokens and requests.
        note: Function that is called with one line when a request is tried again.
    """
    client = settings.connect(note)
    probe = settings.examine(client, tools.tokenizer, _max_tokens(config))
    for label in probe.untested:
        note(f"note: {label}: its tokenizer was not compared with that of the student; it returns no token ids and no texts")
    return ServedTeacher(
        settings,
        client,
        probe,
        vocabulary=tools.vocabulary,
        end_ids=tools.end_ids,
        device=next(tools.student.parameters()).device,
        count_text=meter.add,
        count=meter.add_requests,
    )


def same_model(run: "OpenRun", teacher: ServedTeacher) -> str:
    """Return a hash that identifies the model of a served teacher.

    The hash is the same in all processes.  At the first start of the run, the values from which the hash is computed are
    stored. Every process must call this function.

    Raises:
        CheckpointError: the folder has checkpoints, and the server had another model when they were written.
    """
    path, processes = run.config.folder / FILE, run.processes
    found = processes.gather([_described(teacher.probe)])[0]
    stored = processes.gather([_read(path)] if processes.is_main else [])[0]
    fault = None if stored is None else _difference(stored, found, teacher.tolerance)
    if fault and checkpoint.steps(run.output.checkpoints):
        raise CheckpointError(
            f"{run.config.folder}: the served teacher has another model than when the run was started ({fault}); serve the "
            "same model, or choose another --out"
        )
    if stored is not None and not fault:
        found = stored
    elif processes.is_main:
        files.write_json(path, found)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _described(probe: Probe) -> dict[str, Json]:
    return {
        "model": dict(probe.model),
        "token_ids": list(probe.token_ids),
        "logprobs": [round(logprob, 6) for logprob in probe.logprobs],
    }


def _read(path: Path) -> dict[str, Json] | None:
    found = files.read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) else None


def _difference(stored: Mapping[str, Json], found: Mapping[str, Json], tolerance: float) -> str | None:
    """Return a phrase that describes how a server's model has changed; None if equal.

    `stored` are the values at the first start of the run, and `found` the present values.
    """
    for name in ("model", "token_ids"):
        if stored.get(name) != found[name]:
            return f"{'its name' if name == 'model' else 'its tokenizer'} differs"
    logprobs = stored.get("logprobs")
    is_list = isinstance(logprobs, list) and all(isinstance(each, float) for each in logprobs)
    difference = mean_difference(cast("list[float]", logprobs), cast("list[float]", found["logprobs"])) if is_list else math.inf
    return f"log-probabilities differ by {difference:.3g} nats per token" if difference > tolerance else None


def _max_tokens(config: Run) -> int:
    return config.data.tokens.prompt_tokens + config.data.tokens.response_tokens


def _silent(line: str) -> None:
    """Print nothing."""
