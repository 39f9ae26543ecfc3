"""From a config to a finished run folder: train, evaluate, report.  The Python API is this.

The run folder is the interface between the stages: each reads what the one before it wrote, and can be repeated alone.  The
same config in the same folder goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import shlex
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from redistill.config.decode import decode
from redistill.config.plugins import Outside
from redistill.config.run import DataConfig, Run, encode_run, without_places
from redistill.config.scoring import load_outside, metrics_of
from redistill.contracts import Example, TokenSequence
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError, ConfigError
from redistill.evaluation import scores as evaluation
from redistill.evaluation.folder import SETTINGS
from redistill.evaluation.scores import EvaluationConfig
from redistill.models.load import ModelConfig, head, load_model
from redistill.processes import signals
from redistill.processes import watch as ranks
from redistill.reports.report import build_report
from redistill.runs.bench import Bench, make_accelerator, open_bench
from redistill.runs.disk_space import check_space, needed_space
from redistill.runs.folder import RUN_FILE, WORTH_KEEPING, claim, has_model, sole_use
from redistill.runs.load import check_positions, load_tests, shared_vocabulary
from redistill.runs.stages import stages, teacher_source
from redistill.storage import files
from redistill.storage.redaction import plain, redacted_tree
from redistill.teachers.local import LocalTeacher
from redistill.training import checkpoint, tracking
from redistill.training.loop import TrainingState


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Args:
        folder: The run folder.
        model: The student, a folder that transformers loads.
        scores: What scores.json holds: under "datasets", data set -> "seeds" -> seed -> scores.
        report: The HTML page.
    """

    folder: Path
    model: Path
    scores: Mapping[str, Any]
    report: Path


def distill(config: Run, *, baselines: Sequence[Path] = (), command: str | None = None) -> RunResult:
    """Train, evaluate and report; a run that stands in `config.folder` already goes on where it stopped.

    Args:
        baselines: Folders of finished runs to compare with in the report.
        command: What to print under "repeat this run"; None takes the command line of this process.

    Raises:
        BusyError: another process is at work on the run.
        RedistillError: see the stages; nothing that was finished is lost.
        Interrupted: SIGTERM or SIGINT; the same call goes on where it stopped.

    Example:
        >>> result = distill(load_config(Path("recipes/smollm2-dolly.yaml")))  # doctest: +SKIP
        >>> list(result.scores["datasets"]["dolly"]["seeds"])  # doctest: +SKIP
        ['10', '20', '30', '40', '50']
    """
    claim(config)
    with sole_use(config.folder, config.training.precision, *WORTH_KEEPING):
        with signals.handled():  # the report is behind it: nothing waits for it, and it can be left anywhere
            _train(config, command)
            scores = _evaluate_student(config)
        report = config.folder / "report.html"
        if PartialState().is_main_process:
            build_report(config.folder, baselines)
    return RunResult(folder=config.folder, model=config.folder / "model", scores=scores, report=report)


@signals.handled()
def train_student(config: Run, *, command: str | None = None) -> Path:
    """Train the student of a run, after its stages, and write its best state to `<folder>/model`; returns that folder.

    Raises:
        ConfigError: the folder holds another run, or another process is at work in it.
        CheckpointError: the data is another than when the run began.
        DataError, ModelError, VocabularyError, OutputError: as their names say.
        TrainingError: too many updates in a row were not finite.
        Interrupted: SIGTERM or SIGINT; the same call goes on after the last update that was made.
    """
    if not claim(config):  # one that is trained may be used by many at once
        with sole_use(config.folder, config.training.precision, *WORTH_KEEPING):
            _train(config, command)
    return config.folder / "model"


def _train(config: Run, command: str | None) -> None:
    """Train the student, unless another process has done so in the meantime."""
    if claim(config):
        return
    for stage in stages(config).values():
        train_student(stage)
    with open_bench(config) as bench:
        is_main = bench.accelerator.is_main_process
        if is_main:
            _begin(bench, command)
        bench.evaluate_before()
        state = bench.train()
        if is_main:
            bench.export()
            _write_run_file(bench, command, status="trained", cost=_cost(config, state))
        bench.accelerator.wait_for_everyone()


def _begin(bench: Bench, command: str | None) -> None:
    """See that the run can be written and that its checkpoints are its own, and write down what it is."""
    config, checkpoints = bench.config, bench.config.folder / "checkpoints"
    export = "merged" if config.student.lora is None else config.student.lora.export
    check_space(config.folder, needed_space(bench.student, bench.schedule, keep=config.training.keep, export=export))
    mine = _identity(bench)
    checkpoint.check_identity(checkpoints, mine)
    _write_run_file(bench, command, status="running")
    checkpoint.claim(checkpoints, mine)


def _identity(bench: Bench) -> dict[str, str]:
    """Hashes of what the run's checkpoints depend on: its settings, and all that it reads, as tokens."""
    settings = json.dumps(without_places(encode_run(bench.config)), sort_keys=True)
    read: dict[str, Sequence[Example | TokenSequence]] = {
        "training data": bench.data.train,
        "validation data": bench.data.validation_examples,
        "corpus": bench.corpus,
    }
    hashes = {name: hashlib.sha256() for name in read}
    for name, sequences in read.items():
        for sequence in sequences:
            hashes[name].update(array("q", [sequence.sample, *sequence.token_ids]).tobytes() + bytes(sequence.supervised))
    return {"config": hashlib.sha256(settings.encode()).hexdigest()} | {name: h.hexdigest() for name, h in hashes.items()}


@signals.handled()
def evaluate_run(config: Run) -> Mapping[str, Any]:
    """Evaluate the trained student of a run folder, and its teacher where `evaluation.compare` asks for it.

    Returns:
        The student's scores, as in scores.json.

    Raises:
        CheckpointError: the run has no trained student yet, or its scores were made with other settings.
        BusyError: another process is at work on the run.
    """
    folder = config.folder
    if not has_model(folder):
        raise CheckpointError(f"{folder}: has no trained student; run `redistill train` with the same recipe first")
    with sole_use(folder, config.training.precision):
        return _evaluate_student(config)


def _evaluate_student(config: Run) -> Mapping[str, Any]:
    folder, accelerator = config.folder, make_accelerator(config.training.precision)
    source = teacher_source(config)
    student = ModelConfig(model=str(folder / "model"))
    plan = [(student, "student", folder, source)]
    if source is not None and "teacher" in config.evaluation.compare:
        plan.append((source, "teacher", folder / "teacher", None))
    scores = {
        label: _evaluate(model, config.data, config.evaluation, target, label, teacher, accelerator)
        for model, label, target, teacher in plan
    }
    if accelerator.is_main_process:
        files.write_json(folder / RUN_FILE, files.read_json(folder / RUN_FILE) | {"status": "finished"})
    accelerator.wait_for_everyone()
    return scores["student"]


def tokens_of(model: str) -> TokenizeConfig:
    """How prompts are made for `model`: as it was trained where it is a run folder, else the defaults."""
    described = Path(model) / RUN_FILE
    if not described.is_file():
        return TokenizeConfig()
    try:
        tokens = files.read_json(described)["config"]["data"]["tokens"]  # and no more: the rest may be of code not at hand
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{described}: holds no config.data.tokens; give back the run.json that the run wrote") from error
    try:
        return decode(TokenizeConfig, tokens, {})
    except ConfigError as error:
        raise ConfigError(f"{described}: config.data.tokens.{error}") from error


@signals.handled()
def evaluate_model(
    model: ModelConfig,
    tests: Mapping[str, str | None],
    evaluation_config: EvaluationConfig,
    tokens: TokenizeConfig,
    out: Path,
    *,
    teacher: ModelConfig | None = None,
    allow_code: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Score any Transformers model on any of the test sets; `out` becomes an evaluation folder.

    Args:
        model: What to load; a run folder stands for the student in it.
        tokens: Template and lengths of prompts; `tokens_of(model)` are those that a run was trained with.
        tests: Task -> file, or None for the task's place on the hub.
        teacher: To measure KL and agreement on the gold answers with.
        allow_code: Modules whose code may run where a metric or a test set is named `module:NAME`.

    Raises:
        ConfigError: no such metric or test set.
        ModelError, DataError, VocabularyError: as their names say.
        CheckpointError: `out` holds answers of another model or of other settings.
    """
    named = [*(("tests", name) for name in tests), *(("metrics", name) for name in evaluation_config.metrics)]
    load_outside(named, Outside.of(allow_code))
    data = DataConfig(tests=dict(tests), tokens=tokens)
    name = Path(model.model).name or model.model
    if (Path(model.model) / RUN_FILE).is_file():
        model = dataclasses.replace(model, model=str(Path(model.model) / "model"))
    # The weights' own type is the precision here: bfloat16 weights need no autocast, and float32 ones want none.
    with sole_use(out, "fp32", SETTINGS):
        return _evaluate(model, data, evaluation_config, out, name, teacher, make_accelerator("fp32"))


@ranks.watched()
def _evaluate(
    source: ModelConfig,
    data: DataConfig,
    config: EvaluationConfig,
    folder: Path,
    label: str,
    teacher_source: ModelConfig | None,
    accelerator: Accelerator,
) -> Mapping[str, Any]:
    """Load a model, and a teacher to compare it with on gold answers, and score it."""
    metrics = metrics_of(data.tasks, config.metrics)
    with signals.handled(at_once=True):
        tests = load_tests(data, tracking.say if accelerator.is_main_process else lambda line: None)
        model, tokenizer = load_model(source)
        check_positions(model, data.tokens, label)
        size, teacher = head(model).num_classes, None
        if teacher_source is not None:
            teacher_model, teacher_tokenizer = load_model(teacher_source)
            size = shared_vocabulary(teacher_model, teacher_tokenizer, model, tokenizer).size
            teacher = LocalTeacher(teacher_model, vocabulary=size, device=accelerator.device)
    with accelerator.autocast():
        return evaluation.evaluate(
            model.to(accelerator.device),
            tokenizer,
            tests,
            config,
            data.tokens,
            folder,
            label=label,
            metrics=metrics,
            progress=tracking.AnswerProgress(label, tracking.say) if accelerator.is_main_process else None,
            teacher=teacher,
            vocabulary=size,
            shard=(accelerator.process_index, accelerator.num_processes),
            gather=signals.gather,
        )


def _cost(config: Run, state: TrainingState) -> dict[str, Any]:
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


def _corpus(bench: Bench) -> dict[str, Any]:
    """What was read of the corpus, as run.json tells it; nothing where no term reads one."""
    if not bench.corpus:
        return {}
    sources = bench.config.data.corpus
    hashes = [files.digest(Path(source)) for source in sources if Path(source).is_file()]
    return {"corpus": {"source": ", ".join(sources), "blocks": len(bench.corpus), "sha256": ", ".join(hashes)}}


def _write_run_file(bench: Bench, command: str | None, status: str, cost: Mapping[str, Any] | None = None) -> None:
    config = bench.config
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
        "processes": bench.accelerator.num_processes,
        "cost": cost,
        "stages": _stages(config),
        "config": encode_run(config),
        "data": {**bench.data.manifest, **_corpus(bench)},
        "models": dict(bench.models.manifest),
        "spans": None if bench.spans is None else bench.spans.description,
    }
    files.write_json(config.folder / RUN_FILE, redacted_tree(described))
