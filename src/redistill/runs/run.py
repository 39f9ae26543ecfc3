"""The Python API: train, evaluate and report a run.

Each of these three steps reads files that the previous step wrote to the run folder.  Therefore each step can be repeated
alone.  A function that is called again with the same configuration and folder resumes the run.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from redistill.config.engines import EngineConfig, decoder_of, own_engine
from redistill.config.plugins import External
from redistill.config.run import Run, encode_run
from redistill.config.scoring import ACCEPTED, load_external, metrics_of
from redistill.config.sections import DataConfig, TeacherConfig
from redistill.contracts import Processes
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError
from redistill.evaluation.evaluator import Evaluator, build_local_engine
from redistill.evaluation.folder import SETTINGS, model_hash
from redistill.evaluation.scorable import unscorable_notes
from redistill.evaluation.scores import EvaluationConfig
from redistill.models.chat_templates import check_chat_templates
from redistill.models.families import head
from redistill.models.load import ModelConfig, load_model
from redistill.models.lora import save_student, trainable_state
from redistill.processes import signals
from redistill.processes import watch as ranks
from redistill.processes.placement import full
from redistill.records import Json
from redistill.reports.report import build_report
from redistill.runs.build import build_evaluator, build_parts, build_test_engine
from redistill.runs.extension import report_extension
from redistill.runs.folder import FINISHED, RUN_FILE, TRAINED, WORTH_KEEPING, check_owner, has_model, of_run, sole_use
from redistill.runs.identity import checked_identity
from redistill.runs.load import load_tests
from redistill.runs.models import check_positions, shared_vocabulary
from redistill.runs.opened import OpenRun, check_sources, make_accelerator, open_run
from redistill.runs.record import begin, cost, write_run_file
from redistill.runs.renderings import report_tests
from redistill.runs.served import check_servers
from redistill.runs.stages import stages, teacher_source
from redistill.runs.teacher_cache import make_cache
from redistill.runs.templates import dated, dated_tests, exported_tokenizer, write_tokens
from redistill.runs.windows import write_windows
from redistill.storage import files, folders
from redistill.teachers.local import LocalTeacher
from redistill.training import checkpoint
from redistill.training.loop import train
from redistill.training.parts import TrainingState
from redistill.training.progress import AnswerProgress, Progress, report
from redistill.training.saving import load_weights, log_size, restore_checkpoint
from redistill.training.trackers import check_packages, tracked


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Args:
        folder: The run folder.
        model: Folder of the trained student, in the format of transformers.
        scores: The content of scores.json.  For example, `scores["datasets"]["dolly"]["seeds"]["10"]` maps the names of metrics
            to the scores on the data set dolly with evaluation seed 10.
        report: Path of the HTML report.

    Example:
        >>> folder = Path("runs/first")
        >>> result = RunResult(folder=folder, model=folder / "model", scores={}, report=folder / "report.html")
        >>> result.model.as_posix()
        'runs/first/model'
    """

    folder: Path
    model: Path
    scores: Mapping[str, Any]
    report: Path


def distill(config: Run, *, baselines: Sequence[Path] = (), command: str | None = None) -> RunResult:
    """Train, evaluate and report a run in `config.folder`; resume an unfinished run.

    Args:
        config: The run.
        baselines: Folders of finished runs to compare with in the report.
        command: Command shown in the report under "repeat this run"; if None, the command line of this process is shown.

    Returns:
        The paths of the run folder, the model and the report, and the student's scores.

    Raises:
        BusyError: another process uses the run folder.
        RedistillError: any error that `train_student` or `evaluate_run` raises; results of completed steps are kept.
        Interrupted: SIGTERM or SIGINT arrived; the same call resumes.

    Example:
        >>> result = distill(load_config(Path("smollm2-dolly")))  # doctest: +SKIP
        >>> list(result.scores["datasets"]["dolly"]["seeds"])  # doctest: +SKIP
        ['10', '20', '30', '40', '50']
    """
    check_owner(config)
    accelerator = make_accelerator(config.training.precision)
    with sole_use(config.folder, accelerator, *WORTH_KEEPING):
        with signals.handled():  # excludes the report: no process waits for it, and it can be interrupted anywhere
            _train(config, accelerator, command)
            scores = _evaluate_student(config, accelerator)
        if accelerator.is_main_process:
            build_report(config.folder, baselines)
    folder = config.folder
    return RunResult(folder=folder, model=folder / "model", scores=scores, report=folder / "report.html")


@signals.handled()
def train_student(config: Run, *, command: str | None = None) -> Path:
    """Train the student of a run, and export its best checkpoint.

    If the recipe fine-tunes the teacher or the student before distillation, these models are trained first.  An unfinished
    run is resumed.  The best checkpoint has the best validation score.

    Args:
        config: The run.
        command: Command shown in the report under "repeat this run"; if None, the command line of this process is shown.

    Returns:
        The folder of the student, `<run folder>/model`.

    Raises:
        BusyError: another process uses the run folder.
        ConfigError: the folder contains another run, or the package of a tracker is missing.
        CheckpointError: the data or the models have changed since the run started.
        RanksDifferError: the ranks of the job have different data, models, settings or packages.
        DataError, ModelError, VocabularyError: the data or the models cannot be used.
        OutputError: the run folder is not writable.
        TrainingError: a check of an update ended the run, for example because the loss is not finite.
        Interrupted: SIGTERM or SIGINT arrived; the same call resumes after the last completed update.

    Example:
        >>> train_student(load_config(Path("smollm2-dolly")))  # doctest: +SKIP
        PosixPath('runs/smollm2-dolly/model')
    """
    if not check_owner(config):  # without a lock: several runs may use a finished stage at the same time
        accelerator = make_accelerator(config.training.precision)
        with sole_use(config.folder, accelerator, *WORTH_KEEPING):
            _train(config, accelerator, command)
    return config.folder / "model"


def _train(config: Run, accelerator: Accelerator, command: str | None) -> None:
    """Train the models that are fine-tuned before the run, then the student.

    If the run folder has a trained student, nothing is trained.
    """
    if check_owner(config):  # another process may have trained the student since
        return
    check_sources(config.data)  # before a model is loaded, which may take minutes
    if accelerator.is_main_process:
        check_packages(config.tracking)
    check_servers(config, accelerator, report)
    recipe, config = config, dated(config)
    for name, stage in stages(recipe).items():  # a stage, which several runs may share, has a date of its own
        if name == "start":
            make_cache(config, accelerator)  # for this run, which may need more sequences than the stage
        if not check_owner(stage):
            with sole_use(stage.folder, accelerator, *WORTH_KEEPING):
                _train(stage, accelerator, None)
    make_cache(config, accelerator)
    with open_run(config, accelerator) as run:
        identity = checked_identity(run)
        extended = begin(run, command, identity) if run.processes.is_main else []
        _evaluate_before(run)
        state = fit(run)
        export(run)
        if run.processes.is_main:
            write_run_file(run, command, identity, status=TRAINED, extended=extended, cost=cost(config, state))
        run.accelerator.wait_for_everyone()


def _evaluate_before(run: OpenRun) -> None:
    """Evaluate the student before training, if the recipe compares it."""
    if "before" not in run.config.evaluation.compare or not run.data.tests:
        return
    folder, metrics = run.config.folder / "before", run.config.test_metrics
    bar, evaluator = run.output.progress, build_evaluator(run, run.models.student)
    progress = AnswerProgress("evaluating before training", bar.note, bar=bar)
    if run.models.states is not None and run.models.teacher is None:
        evaluator = replace(evaluator, teacher=None)  # a cached teacher has no states of test data
    with run.placement.unsharded(run.student), run.frozen.passes():
        evaluator.evaluate(run.data.tests, folder, label="before", metrics=metrics, progress=progress)


def fit(run: OpenRun) -> TrainingState:
    """Train the student and load its best checkpoint; return the state of training.

    Training resumes from the newest valid checkpoint, if there is one.
    """
    parts = build_parts(run, build_evaluator(run, run.models.student))
    note, checkpoints = run.output.progress.note, run.output.checkpoints
    found, state = checkpoint.load(checkpoints), TrainingState()
    if found is not None:
        list(map(note, found.skipped))
        state = restore_checkpoint(parts, found)
        note(f"resumed at step {state.step} of {parts.schedule.updates}")
    if run.processes.is_main:
        for log in parts.output.logs:  # without a checkpoint, nothing is kept, not even the validation at step 0
            log.truncate_after(state.step, 0 if found is None else log_size(found, log))
    run.accelerator.wait_for_everyone()
    if found is not None:
        report_extension(parts, found, run.config.optimiser)
    with _tracked(run, state.step):
        state = train(parts, run.config.training, run.config.optimiser, state)
    assert state.best_step is not None and state.best_score is not None, "the last update is always validated"
    best = checkpoint.load_step(checkpoints, state.best_step)
    load_weights(run.student, best)
    shown = {m.name: f"{m.title} {m.shown(m.goodness(state.best_score))}" for m in run.config.validation_metrics}
    shown |= {"cross_entropy": f"cross entropy {-state.best_score:.3f}", ACCEPTED: f"acceptance {state.best_score:.3f}"}
    note(f"best checkpoint: step {best.step}, validation {shown[run.config.training.choose_by]}")
    return state


def _tracked(run: OpenRun, step: int) -> AbstractContextManager[None]:
    """Context in which the main process sends metrics to the trackers of the recipe."""
    config, output = run.config, run.output
    if not (config.tracking.to and run.processes.is_main):
        return nullcontext()
    settings = encode_run(config)
    return tracked(config.tracking, output.log, name=config.name, settings=settings, step=step, note=output.progress.note)


def export(run: OpenRun) -> None:
    """Write the student to the folder `model`, and the windows of DAC-KL."""
    write_windows(run)
    model, lora = run.models.student, run.config.student.lora
    state = full(trainable_state(model))  # gathered by all processes, written by the main process
    with run.output.progress.phase("writing", in_log=True), run.placement.unsharded(run.student):
        if run.processes.is_main:
            with folders.new_folder(run.config.folder / "model") as folder:
                tokenizer = exported_tokenizer(run.models.tokenizer, run.data.templates)
                save_student(model, tokenizer, folder, "merged" if lora is None else lora.export, state=state)
                write_tokens(folder, run.config.data.tokens)


@signals.handled()
def evaluate_run(config: Run) -> Mapping[str, Any]:
    """Evaluate the trained student of a run.

    If `evaluation.compare` contains "teacher", the local teacher is evaluated as well.

    Args:
        config: The run, whose student has been trained.

    Returns:
        The student's scores, as in scores.json.

    Raises:
        CheckpointError: the run has no trained student, or its folder contains texts that were generated with other settings.
        BusyError: another process uses the run folder.
        DataError: a test set cannot be read, or a row has no reference answer.
        Interrupted: SIGTERM or SIGINT arrived; the same call resumes.

    Example:
        >>> from redistill.config.sections import StudentConfig
        >>> evaluate_run(Run(name="not-trained", method="sft", student=StudentConfig(model="gpt2")))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.CheckpointError: runs/not-trained: has no trained student;...
    """
    folder = config.folder
    if not has_model(folder):
        raise CheckpointError(f"{folder}: has no trained student; run `redistill train` with the same recipe first")
    accelerator = make_accelerator(config.training.precision)
    with sole_use(folder, accelerator):
        return _evaluate_student(config, accelerator)


def _evaluate_student(config: Run, accelerator: Accelerator) -> Mapping[str, Json]:
    config = dated(config)
    folder, source = config.folder, teacher_source(config)
    is_loaded = isinstance(config.teacher, TeacherConfig) and config.teacher.is_loaded
    compared = source if is_loaded else None  # a cached teacher has no states of test data
    student, settings = ModelConfig(model=str(folder / "model")), config.evaluation
    evaluate = partial(_evaluate, data=config.data, accelerator=accelerator, engine=own_engine(config.engine))
    scores = evaluate(student, compared, config=settings, label="student", folder=folder)
    if source is not None and "teacher" in settings.compare:
        main = replace(settings, decodings=())
        evaluate(source, None, config=main, label="teacher", folder=folder / "teacher")
    if accelerator.is_main_process:
        files.write_json(folder / RUN_FILE, files.read_json(folder / RUN_FILE) | {"status": FINISHED})
    accelerator.wait_for_everyone()
    return scores


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
    engine: EngineConfig | None = None,
) -> Mapping[str, Any]:
    """Evaluate a model on test sets; transformers must be able to load the model.

    The generated texts and the scores are written to `out`.

    Args:
        model: The model.  If it names a run folder, the student of this run is loaded.
        tests: Name of a test set -> its file, or None for its data on the hub.
        evaluation_config: How texts are sampled and scored.
        tokens: Prompt template and length limits; `tokens_of(model)` returns those of the model's training.
        out: The output folder.
        teacher: Teacher model, or a run folder whose student is the teacher, for two scores on the reference answers: KL,
            and agreement (equal most probable tokens).  If None, these scores are omitted.
        allow_code: Modules that may be imported for metrics and test sets with names of the form `module:NAME`.
        engine: Settings of the engine that generates the answers; if None, the model generates them in this process.

    Returns:
        The content of scores.json.

    Raises:
        ConfigError: a metric or a test set is unknown.
        ModelError, DataError, VocabularyError: the models or the data cannot be used.
        CheckpointError: `out` contains texts that another model generated, or that were generated with other settings.
        BusyError: another process uses `out`.

    Example:
        >>> config = EvaluationConfig(metrics=("rouge",))
        >>> tokens, out = TokenizeConfig(), Path("runs/gpt2")
        >>> evaluate_model(ModelConfig(model="gpt2"), {"dolly": None}, config, tokens, out)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: metrics = 'rouge': no such metric;...
    """
    named = [*(("tests", name) for name in tests), *(("metrics", name) for name in evaluation_config.metrics)]
    load_external(named, External.of(allow_code))
    data = DataConfig(tests=dict(tests), tokens=tokens)
    name = Path(model.model).name or model.model
    accelerator = make_accelerator("fp32")  # the model runs in the dtype of its weights, without autocast
    with sole_use(out, accelerator, SETTINGS):
        teacher = None if teacher is None else of_run(teacher)
        return _evaluate(of_run(model), teacher, data, evaluation_config, out, name, accelerator, engine)


@ranks.watched()
def _evaluate(
    source: ModelConfig,
    teacher_source: ModelConfig | None,
    data: DataConfig,
    config: EvaluationConfig,
    folder: Path,
    label: str,
    accelerator: Accelerator,
    engine: EngineConfig | None = None,
) -> Mapping[str, Json]:
    """Load and evaluate a model; return the content of scores.json.

    `source` and `teacher_source` name the model and the teacher to load, and `data` has the test sets.  Without a teacher,
    scores that need a teacher are omitted.  `label` names the model in messages, and `folder` is the output folder.
    `engine` has the settings of the engine that generates the answers; if `engine` is None, the model generates them in
    this process.
    """
    metrics = metrics_of(data.tasks, config.metrics)
    with Progress(enabled=accelerator.is_main_process) as bar:
        with signals.handled(at_once=True):
            tests = load_tests(data, bar.note)
            for line in unscorable_notes(tests, metrics, limit=config.limit):
                bar.note(f"note: {line}")
            model, tokenizer = load_model(source)
            check_positions(model, data.tokens, label)
            check_chat_templates(label, tokenizer, data.tokens.template_arguments)
            size, teacher, teacher_hash = head(model).num_classes, None, None
            if teacher_source is not None:
                teacher_model, teacher_tokenizer = load_model(teacher_source)
                size = shared_vocabulary(teacher_model, teacher_tokenizer, model, tokenizer).size
                teacher_hash = model_hash(teacher_model)
                teacher = LocalTeacher(teacher_model, vocabulary=size, device=accelerator.device)
        data = dated_tests(data, tokenizer, folder, SETTINGS)
        report_tests(tests, tokenizer, data.tokens, bar.note)
        local = build_local_engine(model.to(accelerator.device), tokenizer, config, size, decoder_of(engine))
        evaluator = Evaluator(
            model=model,
            tokenizer=tokenizer,
            engine=build_test_engine(engine, local, tokenizer, data.tokens, bar.note),
            config=config,
            tokens=data.tokens,
            teacher=teacher,
            teacher_hash=teacher_hash,
            vocabulary=size,
            processes=Processes(accelerator.process_index, accelerator.num_processes, signals.gather),
            autocast=accelerator.autocast,
        )
        progress = AnswerProgress(f"evaluating {label}", bar.note, bar=bar) if accelerator.is_main_process else None
        return evaluator.evaluate(tests, folder, label=label, metrics=metrics, progress=progress)
