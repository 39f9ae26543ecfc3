"""What a run folder records of its run: run.json, and the identity of its checkpoints."""

import hashlib
import json
import shlex
import sys
from array import array
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redistill.config.run import Run, encode_run, without_places
from redistill.contracts import Example, TokenSequence
from redistill.runs.build import OpenRun
from redistill.runs.disk_space import check_space, needed_space
from redistill.runs.folder import RUN_FILE
from redistill.runs.stages import stages
from redistill.storage import files
from redistill.storage.redaction import plain, redacted_tree
from redistill.training import checkpoint, tracking
from redistill.training.parts import TrainingState


def begin(run: OpenRun, command: str | None) -> None:
    """Check that the run fits on the disk and that its checkpoints are its own, and write run.json."""
    config, checkpoints = run.config, run.output.checkpoints
    export = "merged" if config.student.lora is None else config.student.lora.export
    schedule = config.training.schedule(len(run.data.train))
    check_space(config.folder, needed_space(run.student, schedule, keep=config.training.keep, export=export))
    mine = _identity(run)
    checkpoint.check_identity(checkpoints, mine)
    write_run_file(run, command, status="running")
    checkpoint.claim(checkpoints, mine)


def _identity(run: OpenRun) -> dict[str, str]:
    """Hashes of what the run's checkpoints depend on: its settings, and all that it reads, as tokens."""
    settings = json.dumps(without_places(encode_run(run.config)), sort_keys=True)
    read: dict[str, Sequence[Example | TokenSequence]] = {
        "training data": run.data.train,
        "validation data": run.data.validation_examples,
        "corpus": run.corpus,
    }
    hashes = {name: hashlib.sha256() for name in read}
    for name, sequences in read.items():
        for sequence in sequences:
            hashes[name].update(array("q", [sequence.sample, *sequence.token_ids]).tobytes() + bytes(sequence.supervised))
    return {"config": hashlib.sha256(settings.encode()).hexdigest()} | {name: h.hexdigest() for name, h in hashes.items()}


def cost(config: Run, state: TrainingState) -> dict[str, Any]:
    """What training has cost, for comparisons; tokens are those of all processes, memory is that of the largest."""
    return {
        "updates": state.step,
        "sequences": state.step * config.training.batch_size,
        "trained_tokens": state.trained_tokens,
        "generated_tokens": state.generated_tokens,
        "seconds": round(state.seconds, 2),
        "peak_bytes": state.peak_bytes,
    }


def _stages(config: Run) -> dict[str, Any]:
    """The stages of a run as run.json tells them."""
    return {
        name: {
            "folder": str(stage.folder),
            "cost": files.read_json(stage.folder / RUN_FILE).get("cost"),
            "sha256": {path.name: files.digest(path) for path in sorted((stage.folder / "model").glob("*.safetensors"))},
        }
        for name, stage in stages(config).items()
    }


def _corpus(run: OpenRun) -> dict[str, Any]:
    """What was read of the corpus, as run.json tells it; nothing where no term reads one."""
    if not run.corpus:
        return {}
    sources = run.config.data.corpus
    hashes = [files.digest(Path(source)) for source in sources if Path(source).is_file()]
    return {"corpus": {"source": ", ".join(sources), "blocks": len(run.corpus), "sha256": ", ".join(hashes)}}


def write_run_file(run: OpenRun, command: str | None, status: str, cost: Mapping[str, Any] | None = None) -> None:
    config = run.config
    described = {
        "schema": 1,
        "name": config.name,
        "method": config.method,
        "status": status,
        "command": plain(command or shlex.join(["redistill", *sys.argv[1:]])),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": tracking.commit(),
        "versions": tracking.versions(),
        "machine": tracking.machine(),
        "processes": run.processes.world,
        "cost": cost,
        "stages": _stages(config),
        "config": encode_run(config),
        "data": {**run.data.manifest, **_corpus(run)},
        "models": dict(run.models.manifest),
        "spans": None if run.spans is None else run.spans.description,
    }
    files.write_json(config.folder / RUN_FILE, redacted_tree(described))
