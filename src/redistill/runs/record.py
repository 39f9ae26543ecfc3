"""Writes run.json, the description of a run, and identity.json."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

import redistill
from redistill.config.run import Run, encode_run
from redistill.config.schema import SCHEMA
from redistill.processes.memory import machine_bytes
from redistill.records import Json
from redistill.reports.folders import mapping
from redistill.runs.commit import own_commit
from redistill.runs.disk_space import check_space, needed_space
from redistill.runs.extension import extend
from redistill.runs.folder import RUN_FILE
from redistill.runs.opened import OpenRun
from redistill.runs.stages import stages
from redistill.storage import files
from redistill.storage.file_hash import file_hash
from redistill.storage.redaction import plain, redacted_command, redacted_tree
from redistill.teachers.served import ServedTeacherConfig
from redistill.training import checkpoint
from redistill.training.parts import TrainingState

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "rouge-score",
    "spacy",
)


def begin(run: OpenRun, command: str | None, identity: Mapping[str, str]) -> list[Json]:
    """Check the disk space and existing checkpoints; write run.json and identity.json.

    If `training.updates` was raised, the results of the shorter run are kept (see `extend`).

    The file identity.json, in the folder of the checkpoints, contains hashes of the settings, models and data of the run.
    If an earlier version of redistill has stored fewer hashes, the missing hashes are added, and a note is logged.

    Args:
        run: The run.
        command: Command that repeats the run, for run.json; if None, the command line of this process is stored.
        identity: Hashes of the settings, models and data of the run, from `checked_identity`.

    Returns:
        The extensions of the run, for `write_run_file`.

    Raises:
        CheckpointError: the folder has checkpoints of another run.
        ConfigError, CheckpointError: the run cannot be extended to the new length.
        DiskFullError: the disk has too little free space.
    """
    config, checkpoints = run.config, run.output.checkpoints
    export = "merged" if config.student.lora is None else config.student.lora.export
    check_space(config.folder, needed_space(run.student, run.schedule, keep=config.training.keep, export=export))
    if unknown := checkpoint.check_identity(checkpoints, identity):
        fault = f"the checkpoints have no hashes of {', '.join(unknown)}, so changes of these inputs cannot be detected"
        run.output.progress.note(f"note: {checkpoints}: {fault}; the current hashes are stored now")
    extended = extend(run)
    write_run_file(run, command, identity, status="running", extended=extended)
    checkpoint.write_identity(checkpoints, identity)
    return extended


def cost(config: Run, state: TrainingState) -> dict[str, float]:
    """Return the cost of training: updates, sequences, tokens, seconds, peak bytes.

    Numbers of tokens are sums over all processes, and the peak memory is the maximum over all processes.  With a served
    teacher, the result also has the number of requests, the number of tokens that were sent to the server, and the number
    that it generated.  If the recipe sets a price per token, the price of these tokens is included.
    """
    teacher, served = config.teacher, dict[str, float]()
    if isinstance(teacher, ServedTeacherConfig):
        served = {"teacher_requests": state.teacher_requests, "teacher_tokens": state.teacher_tokens}
        if teacher.price is not None:
            served["teacher_price"] = round(teacher.price * state.teacher_tokens / 1e6, 6)
    return {
        "updates": state.step,
        "sequences": state.step * config.training.batch_size,
        "trained_tokens": state.trained_tokens,
        "generated_tokens": state.generated_tokens,
        "seconds": round(state.seconds, 2),
        "peak_bytes": state.peak_bytes,
        **served,
    }


def write_run_file(
    run: OpenRun,
    command: str | None,
    identity: Mapping[str, str],
    status: str,
    *,
    extended: Sequence[Json],
    cost: Mapping[str, float] | None = None,
) -> None:
    """Write run.json; secrets, such as access tokens, are masked.

    Args:
        run: The run.
        command: Command that repeats the run, shown in reports; if None, the command line of this process is stored.
        identity: Hashes of the settings, models and data of the run, from `checked_identity`.
        status: "running" or "trained".
        extended: The extensions of the run, from `begin`.
        cost: Cost of training, as the function `cost` returns it; None before training.
    """
    config, sources, corpus = run.config, run.config.data.corpus, dict[str, Json]()
    note = run.output.progress.note
    if run.corpus:
        hashes = [files.digest(Path(source)) for source in sources if Path(source).is_file()]
        corpus = {"corpus": {"source": ", ".join(sources), "blocks": len(run.corpus), "sha256": ", ".join(hashes)}}
    described = {
        "schema": SCHEMA,
        "name": config.name,
        "method": config.method,
        "status": status,
        "command": plain(command) if command else redacted_command(["redistill", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": own_commit(),
        "versions": versions(),
        "machine": machine(),
        "processes": run.processes.world,
        "cost": cost,
        "extended": list(extended),
        "stages": {
            name: {
                "folder": str(stage.folder),
                "cost": mapping(files.read_json(stage.folder / RUN_FILE)).get("cost"),
                "sha256": {path.name: file_hash(path, note) for path in sorted((stage.folder / "model").glob("*.safetensors"))},
            }
            for name, stage in stages(config).items()
        },
        "config": encode_run(config),
        "resolved": _resolved(config),
        "data": {**run.data.manifest, **corpus},
        "models": dict(run.models.manifest),
        "identity": dict(identity),
        "spans": None if run.spans is None else run.spans.description,
    }
    files.write_json(config.folder / RUN_FILE, redacted_tree(described))


def _resolved(config: Run) -> dict[str, Json]:
    """Return policy and objective of a run, which its recipe or its method sets."""
    method = config.resolved_method
    encoded = encode_run(replace(config, policy=method.policy, objective=method.objective))
    return {name: encoded[name] for name in ("policy", "objective")}


# --- environment --------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Json]:
    """Return a description of the machine and its accelerators, for run.json.

    The versions of Python and of the platform, and the number of torch threads, are included.
    """
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_bytes": machine_bytes(),
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }


def cores() -> int:
    """Return the number of processor cores that this process may use.

    The machine can have more cores, for example if the process runs in a container.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions of redistill and of the packages that can change a result.

    A package that is not installed is left out.
    """
    found = {"redistill": redistill.__version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
