"""Opens a run: loads its models and data, and moves the models to their device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from redistill.config.capabilities import why_gold
from redistill.config.decode import kind_of
from redistill.config.methods import method
from redistill.config.run import Run
from redistill.config.sections import DataConfig, TeacherConfig
from redistill.contracts import Engine, EngineTools, Processes, Teacher, TeacherTools, TokenSequence
from redistill.data.reader import single_sources
from redistill.data.spans.extract import SpanExtractor, load_extractor
from redistill.errors import ConfigError
from redistill.evaluation.decodings import seed_notes
from redistill.evaluation.scorable import unscorable_notes
from redistill.generation.external import CheckedEngine
from redistill.generation.local import LocalEngine, LocalEngineConfig, MeteredEngine
from redistill.models.families import body_module, layer_list
from redistill.models.offload import offload_layers
from redistill.models.student import StudentModule
from redistill.policies import Adaptive, has_buffer
from redistill.policies.revised import chunk_notes
from redistill.processes import signals
from redistill.processes import watch as ranks
from redistill.processes.frozen import Frozen, FrozenShards
from redistill.processes.memory import Halving
from redistill.processes.placement import Placement, Replicated, Sharded, Single
from redistill.runs import external
from redistill.runs.cache_source import source_of
from redistill.runs.launcher import check_launcher, launcher_note
from redistill.runs.load import DataSets, load_data, read_corpus
from redistill.runs.models import Models, load_models
from redistill.runs.revisions import FILE as REVISIONS
from redistill.runs.revisions import POSITIONS
from redistill.runs.served import open_served
from redistill.teachers.appended import AppendedStates
from redistill.teachers.cached import CachedTeacher, CachedTeacherConfig
from redistill.teachers.local import LocalTeacher
from redistill.teachers.served import ServedTeacherConfig
from redistill.training.metrics import Meter, MetricsLog
from redistill.training.parts import Output
from redistill.training.progress import Progress, report
from redistill.training.schedule import Schedule

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Timeout of collectives.  Dead ranks are detected earlier, by `redistill.processes.watch`."""


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run whose models and data are loaded, with the models on their device.

    Args:
        student: The student; its parameters are distributed over the processes by `placement`.
        placement: How the student's parameters are distributed over the processes.
        engine: The object that generates the student's text for training.
        teacher: The teacher; None if the run has none.
        sizes: Two batch sizes, which are halved when memory runs out: the number of sequences in a micro-batch, and the number
            of texts that are generated at once.
        corpus: Blocks of text for the pre-training term of the loss; empty without this term.
        spans: The object that finds phrases in texts; None if no term of the loss needs phrases.
        output: The log files, the progress on the terminal, the counter of generated tokens, and the path of the checkpoints.
    """

    config: Run
    accelerator: Accelerator
    models: Models
    data: DataSets
    student: StudentModule
    placement: Placement
    engine: Engine
    teacher: Teacher | None
    sizes: tuple[Halving, Halving]
    corpus: Sequence[TokenSequence]
    spans: SpanExtractor | None
    output: Output = field(repr=False)

    @property
    def processes(self) -> Processes:
        """Rank of this process, number of processes, and the function `gather`.

        `gather` concatenates the lists of all processes.
        """
        return Processes(self.accelerator.process_index, self.accelerator.num_processes, self.frozen.gather)

    @property
    def frozen(self) -> Frozen:
        """How the parameters of the teacher are distributed over the processes."""
        return self.models.frozen

    @property
    def schedule(self) -> Schedule:
        """Numbers of updates: of the run, between validations, and between checkpoints."""
        return self.config.training.schedule(len(self.data.train))


@contextmanager
def open_run(config: Run, accelerator: Accelerator | None = None) -> Iterator[OpenRun]:
    """Context in which the models and data of a run are loaded.

    The models are on their device.  Progress is shown on the terminal until the context ends.

    Args:
        config: The run.
        accelerator: The accelerator of the job; if None, one is created for the run's precision.

    Raises:
        ConfigError: the batch size is not a multiple of the number of processes, or a setting cannot be used with the
            models or the data.
        DataError, ModelError, VocabularyError: the data or the models cannot be used.
        Interrupted: a signal arrived, in this process or another.
    """
    accelerator = accelerator or make_accelerator(config.training.precision)
    size, world, is_main = config.training.batch_size, accelerator.num_processes, accelerator.is_main_process
    if size % world:
        raise ConfigError(f"training.batch_size = {size}: must be a multiple of {world}, the number of processes")
    with ranks.watched(), Progress(log_every=config.training.log_every, enabled=is_main) as progress:
        with signals.handled(at_once=True):
            with progress.phase("loading models", in_log=True):
                models = load_models(config, progress.note, device=loading_device(config, world, accelerator.device))
            rejected = config.folder / "rejected.jsonl" if is_main else None
            with progress.phase("tokenising", in_log=True):
                data = load_data(
                    config.data,
                    models.tokenizer,
                    config.seed,
                    why_gold=why_gold(config.resolved_method),
                    rejected=rejected,
                    report=progress.note,
                )
            for note in (*models.notes, *notes(config), *_unscorable(config, data)):
                progress.note(f"note: {note}")
        signals.gather([])  # barrier: detects a rank that was interrupted above, before the collectives of `assemble`
        with signals.handled(at_once=world == 1):
            opened = assemble(config, accelerator, models, data, progress)
            if models.states is not None:
                models.states.check(source_of(config, models.tokenizer, models.end_ids, data, opened.corpus, progress.note))
        signals.gather([])  # barrier: detects a rank that was interrupted above, where no rank polls
        progress.expect(opened.schedule.updates)
        with progress.phase("fine-tuning" if config.method == "sft" else "training", in_log=True):
            yield opened


def loading_device(config: Run, world: int, device: torch.device) -> torch.device:
    """Return the device to which the weights of the run's models are read.

    Models that will be sharded over `world` processes are read to the CPU, so that `device` never has a whole model.
    """
    return torch.device("cpu") if config.placement == "sharded" and world > 1 else device


def check_sources(config: DataConfig) -> None:
    """Check that all files and folders of the data exist.

    Nothing is requested from the hub.

    Raises:
        DataError: a source does not exist, or its format is not supported.
    """
    for source, split in (*config.sources, *((source, "test") for source in config.tasks.values() if source is not None)):
        single_sources(source, split)


def assemble(config: Run, accelerator: Accelerator, models: Models, data: DataSets, progress: Progress) -> OpenRun:
    """Move the models to their device, and build the other components of a run.

    Args:
        config: The run.
        accelerator: The accelerator of the job.
        models: The models, on any device; they are moved in place.
        data: The tokenised data.
        progress: Progress and messages on the terminal.

    Raises:
        ConfigError: an external component cannot be built.
        DataError: the text for the pre-training term of the loss cannot be read.
    """
    settings, device = config.training, accelerator.device
    micro_batch = Halving("training.micro_batch_size", settings.micro_batch_size)
    text_batch = Halving("training.generation_batch_size", settings.generation_batch_size)
    folder, meter = config.folder, Meter()
    output = Output(
        log=MetricsLog(folder / "metrics.jsonl"),
        policy_logs=(MetricsLog(folder / REVISIONS), MetricsLog(folder / POSITIONS)),
        progress=progress,
        meter=meter,
        checkpoints=folder / "checkpoints",
    )
    objective = config.resolved_method.objective
    divergence = objective.build_divergence(models.vocabulary, config.seed)
    student = StudentModule(models.student, vocabulary=models.vocabulary, divergence=divergence, compile=settings.compile)
    placement = make_placement(accelerator.num_processes, config.placement)
    placement.wrap(student, device)
    models = replace(models, frozen=place_teacher(config, models, placement, device))
    tools = EngineTools(
        student=models.student,
        teacher=models.teacher,
        tokenizer=models.tokenizer,
        vocabulary=models.vocabulary,
        end_ids=models.end_ids,
        pad_id=models.pad_id,
        batch_size=text_batch,
        autocast=accelerator.autocast,
        note=progress.note,
    )
    teacher = _build_teacher(config, models, tools, accelerator, output)
    engine = _build_engine(config, tools)
    return OpenRun(
        config=config,
        accelerator=accelerator,
        models=models,
        data=data,
        student=student,
        placement=placement,
        engine=MeteredEngine(engine, meter.add),
        teacher=teacher,
        sizes=(micro_batch, text_batch),
        corpus=read_corpus(config, models.tokenizer, progress.note, updates=settings.schedule(len(data.train)).updates),
        spans=load_extractor(config.data.spans) if objective.uses_spans else None,
        output=output,
    )


def _build_engine(config: Run, tools: EngineTools) -> Engine:
    """Build the engine that generates the student's text for training."""
    node, name = config.engine, kind_of(type(config.engine))
    where, declared = f"engine.kind = {name}", config.engine_capabilities
    engine: Engine = external.built(where, lambda: node.build(tools), external.ENGINE, declared)
    return engine if isinstance(engine, LocalEngine) else CheckedEngine(engine, name, tools.vocabulary)


def _build_teacher(config: Run, models: Models, tools: EngineTools, accelerator: Accelerator, output: Output) -> Teacher | None:
    """Build the run's teacher on its device; return None if the run uses none.

    Args:
        config: The run.
        models: The models, with the store of a cached teacher.
        tools: Tools of the student's engine; their attribute `teacher` is the language model of a local teacher, or None.
        accelerator: Provides the device and the index of this process.
        output: The counter of tokens and requests, and the messages on the terminal.
    """
    node, vocabulary, device = config.teacher, tools.vocabulary, accelerator.device
    if tools.teacher is not None:
        if isinstance(node, TeacherConfig) and node.offload is not None:
            files = config.folder / "teacher-offload" / f"rank-{accelerator.process_index}"
            offload_layers(tools.teacher, node.offload, device, files)
        engine = MeteredEngine(LocalEngineConfig().build(replace(tools, student=tools.teacher, teacher=None)), output.meter.add)
        states = None
        if models.states is not None:
            folder = config.folder / "teacher-states" / models.states.digest[:16] / f"rank-{accelerator.process_index}"
            states = AppendedStates(models.states, folder, keeps=has_buffer(config.resolved_method.policy))
        return LocalTeacher(
            tools.teacher, vocabulary=vocabulary, device=device, engine=engine, states=states, note=output.progress.note
        )
    if models.states is not None:
        return CachedTeacher(models.states, vocabulary=vocabulary, device=device)
    if node is None or isinstance(node, TeacherConfig | CachedTeacherConfig):
        return None
    if isinstance(node, ServedTeacherConfig):
        return open_served(config, node, tools, output.meter, output.progress.note)
    teacher_tools = TeacherTools(
        tokenizer=tools.tokenizer, vocabulary=vocabulary, end_ids=tools.end_ids, pad_id=tools.pad_id, device=device
    )
    where, declared = f"teacher.kind = {kind_of(type(node))}", config.teacher_capabilities
    return external.built(where, lambda: node.build(teacher_tools), external.TEACHER, declared)


def notes(config: Run) -> Iterator[str]:
    """Yield a sentence for each valid setting whose effect may be unintended."""
    if method(config.method).start == "finetuned" and config.student.start == "method" and config.student.finetune is None:
        yield f"{config.method} usually starts from a fine-tuned student; set student.finetune for that"
    for name, usual in method(config.method).optimiser.items():
        if (value := getattr(config.optimiser, name)) != usual:
            yield f"optimiser.{name} is {value} in the recipe; the method's default is {usual}"
    if torch.cuda.is_available():
        yield from _precision_notes(config)
    policy = config.resolved_method.policy
    if isinstance(policy, Adaptive) and policy.threshold == 0 and not config.training.evaluate_every:
        when = "only after a validation loss has risen, and training.evaluate_every is 0"
        yield f"policy adaptive uses student text {when}; set training.evaluate_every"
    yield from chunk_notes(policy, config.engine_capabilities)
    yield from seed_notes(config.evaluation.decodings, config.evaluation.seeds)


def _precision_notes(config: Run) -> Iterator[str]:
    """Yield a sentence for each precision that is slow on a GPU, or needs more memory than necessary."""
    teacher, student, is_bf16 = config.teacher, config.student, config.training.precision == "bf16"
    if config.training.precision == "fp32":
        yield "training.precision is fp32, which is slow on a GPU; bf16 or tf32 is faster"
    if is_bf16 and isinstance(teacher, TeacherConfig) and teacher.is_loaded and teacher.dtype == "float32":
        yield "teacher.dtype is float32, and precision bf16 does not change it; bfloat16 needs half the memory and is faster"
    if is_bf16 and student.lora is not None and student.lora.quantise == "none" and student.dtype == "float32":
        yield "the frozen base of student.lora is float32; with student.dtype=bfloat16 it needs half the memory"


def _unscorable(config: Run, data: DataSets) -> Iterator[str]:
    """Yield notes on validation and test records that a metric cannot score."""
    yield from unscorable_notes({"validation": data.validation}, {"validation": config.validation_metrics})
    yield from unscorable_notes(data.tests, config.test_metrics, limit=config.evaluation.limit)


def make_placement(num_processes: int, kind: Literal["auto", "sharded"]) -> Placement:
    """Return the object that distributes the student's parameters over processes.

    With several processes, the parameters are sharded if `kind` is "sharded", and else replicated.
    """
    if kind == "sharded" and num_processes > 1:
        return Sharded(lambda student: layer_list(cast(StudentModule, student).model)[1])
    return Single() if num_processes == 1 else Replicated()


def place_teacher(config: Run, models: Models, placement: Placement, device: torch.device) -> Frozen:
    """Shard the teacher over the processes in place, if the student is sharded.

    A teacher that is quantised or offloaded, or that only completes a cache, stays whole.

    Args:
        config: The run.
        models: The models of the run.
        placement: The placement of the student.
        device: Device of this process.

    Returns:
        The contexts in which the teacher may be used.
    """
    teacher, node = models.teacher, config.teacher
    is_whole = not isinstance(node, TeacherConfig) or node.quantise is not None or node.offload is not None
    if teacher is None or models.states is not None or is_whole or not placement.passes_communicate:
        return Frozen()
    teacher.eval().requires_grad_(False)
    return FrozenShards(teacher, body_module(teacher), layer_list(teacher)[1], device)


def make_accelerator(precision: Literal["fp32", "tf32", "bf16"]) -> Accelerator:
    """Create an accelerator on the GPU if there is one, else on the CPU.

    The precision "bf16" enables autocast.  The precision "tf32" rounds the factors of fp32 matrix products on a GPU.

    Accelerate keeps the precision in a global state.  Without a reset, a second run in the same process would fail or have the
    precision of the first run.  So this function resets that state.  The process group stays unchanged.

    Raises:
        ConfigError: `accelerate launch` requests something that is not supported (see `check_launcher`).
    """
    check_launcher()
    AcceleratorState._reset_state(reset_partial_state=False)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    autocast, handlers = "bf16" if precision == "bf16" else "no", [InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)]
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=autocast, kwargs_handlers=handlers)
    if (note := launcher_note(accelerator.num_processes)) is not None:
        report(f"note: {note}")
    return accelerator
