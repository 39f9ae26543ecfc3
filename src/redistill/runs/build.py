"""Builds the components of the training loop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import torch
from accelerate.utils import gather_object
from torch import nn

from redistill.config.decode import kind_of
from redistill.config.engines import EngineConfig, decoder_of
from redistill.config.run import Run
from redistill.contracts import Batch, Engine, EngineTools, TextTeacher
from redistill.data.spans.extract import SpanExtractor
from redistill.data.spans.mark import SpanMarker
from redistill.data.tokenize import TokenizeConfig
from redistill.evaluation.evaluator import Evaluator, build_local_engine
from redistill.evaluation.measurements import MeasureConfig
from redistill.generation.external import CheckedEngine
from redistill.generation.local import LocalEngine, LocalEngineConfig, MeteredEngine
from redistill.generation.prefix import PrefixReader
from redistill.generation.vllm import VllmEngine, VllmEngineConfig
from redistill.interfaces import Tokenizer
from redistill.models.activations import activation_bytes, token_limit
from redistill.models.families import head
from redistill.models.load import parameter_bytes
from redistill.models.offload import device_weights
from redistill.policies import GoldBatches, Policy, PolicyTools, Revision, Scorer, Shuffled
from redistill.policies.ahead import AheadSource
from redistill.policies.legacy import legacy_sequence
from redistill.policies.revised import revises
from redistill.policies.source import Source
from redistill.processes.memory import device_bytes
from redistill.runs.external import SOURCE, built
from redistill.runs.opened import OpenRun
from redistill.runs.revisions import RevisionLog
from redistill.teachers.local import LocalTeacher
from redistill.training.curriculum import Curriculum
from redistill.training.guards import CollapseMonitor, EarlyStopping, Event, UpdateGuard
from redistill.training.optimiser import parameter_groups
from redistill.training.parts import Guards, Learner, Parts
from redistill.vocab_pass import Head


def build_parts(run: OpenRun, evaluator: Evaluator) -> Parts:
    """Build the components of the training loop.

    Args:
        run: The run, with loaded models and data.
        evaluator: The evaluator that computes the validation metrics of the run's student.
    """
    config = run.config
    optimiser, objective, metrics = config.optimiser, config.resolved_method.objective, config.validation_metrics
    groups = parameter_groups(run.student, run.student.clip_network, optimiser)
    optimizer = torch.optim.AdamW(
        groups, lr=optimiser.learning_rate, betas=optimiser.betas, weight_decay=optimiser.weight_decay, fused=True
    )
    learner = Learner(
        student=run.student,
        placement=run.placement,
        optimizer=optimizer,
        objective=objective,
        teacher=run.teacher,
        curriculum=Curriculum(objective.divergence, run.schedule.updates),
        max_tokens=max_tokens(run),
        frozen=run.frozen,
    )
    held_out = (run.data.validation, run.data.validation_examples)
    return Parts(
        accelerator=run.accelerator,
        learner=learner,
        policy=build_policy(run),
        engine=run.engine,
        validate=partial(evaluator.validate, *held_out, metrics=metrics, seed=config.seed),
        metrics=metrics,
        guards=_guards(run),
        output=run.output,
        schedule=run.schedule,
        pad_id=run.models.pad_id,
        end_ids=run.models.end_ids,
        seed=config.seed,
    )


def max_tokens(run: OpenRun) -> int | None:
    """Return how many tokens of a micro-batch fit into memory.

    The result is None on a CPU.  It is estimated from the sizes of weights, gradients, optimiser state and activations, so it
    is the same in a resumed run.
    """
    memory, config, models = device_bytes(run.accelerator.device), run.config, run.models
    if memory is None:
        return None
    trained = sum(parameter.nbytes for parameter in run.student.parameters() if parameter.requires_grad)
    student = parameter_bytes(run.student) + 3 * trained  # gradients, and two moments of AdamW
    if run.placement.passes_communicate:  # each process has a part
        student //= run.processes.world
    occupied = student + (0 if models.teacher is None else device_weights(models.teacher) // run.frozen.world)
    is_bf16 = config.training.precision == "bf16" or config.student.dtype == "bfloat16"
    return token_limit(memory, occupied, activation_bytes(models.student, 2 if is_bf16 else 4))


def _guards(run: OpenRun) -> Guards:
    config, output = run.config, run.output
    is_main = run.accelerator.is_main_process

    def report_event(event: Event) -> None:
        """Log an event to the terminal and metrics.jsonl, in the main process only."""
        if is_main:
            output.log.write(event.line())
            output.progress.note(event.text)

    return Guards(
        update=UpdateGuard(
            config.guards,
            folder=config.folder,
            report_event=report_event,
            gather=gather_object,
            is_main=is_main,
            record=lambda sample: run.data.train[sample].record.record_id,
        ),
        collapse=CollapseMonitor(config.guards, report_event),
        early_stopping=EarlyStopping(patience=config.training.patience),
        micro_batch=run.sizes[0],
        text_batch=run.sizes[1],
        report_event=report_event,
    )


def build_evaluator(run: OpenRun, model: nn.Module) -> Evaluator:
    """Build an evaluator of the run's student.

    The evaluator computes the validation metrics during training, and the test metrics of the student before training.

    Args:
        run: The run, with loaded models and data.
        model: The language model of the student.
    """
    models = run.models
    # Further decodings and measurements are for the trained student.
    config = replace(run.config.evaluation, decodings=(), measure=MeasureConfig(prompts=0))
    return Evaluator(
        model=model,
        tokenizer=models.tokenizer,
        engine=build_local_engine(model, models.tokenizer, config, models.vocabulary, decoder_of(run.config.engine)),
        config=config,
        tokens=run.config.data.tokens,
        teacher=run.teacher,
        vocabulary=models.vocabulary,
        processes=run.processes,
        autocast=run.accelerator.autocast,
    )


def build_test_engine(
    config: EngineConfig | None, local: LocalEngine, tokenizer: Tokenizer, tokens: TokenizeConfig, note: Callable[[str], None]
) -> Engine:
    """Build the engine that generates answers to test sets.

    Args:
        config: Settings of the engine; if None, the engine `local` is returned.
        local: The local engine of the evaluated model.
        tokenizer: Tokenizer of the evaluated model.
        tokens: Length limits of prompt and answer, in tokens.
        note: Function that is called with one line for the user, such as which data are sent to which server.

    Raises:
        ConfigError: a server is not allowed, or has too few positions.
        ServerError: a server cannot be used, or its log-probabilities differ from those of the evaluated model.
        ServerUnavailableError: a server cannot be reached.
    """
    if not isinstance(config, VllmEngineConfig):
        return local
    assert local.vocabulary is not None, "set by the caller"
    note(config.announcement())
    tools = EngineTools(
        student=local.model,
        teacher=None,
        tokenizer=tokenizer,
        vocabulary=local.vocabulary,
        end_ids=tuple(local.end_ids),
        pad_id=local.pad_id,
        batch_size=local.batch_size,
        autocast=local.autocast,
        note=note,
    )
    config.connect(note).check(tokens.prompt_tokens + tokens.response_tokens, note)
    engine = config.build(tools)
    engine.sync(local.model, 0)
    return engine


def build_gold(run: OpenRun) -> GoldBatches:
    """Return the training examples with their reference answers, as shuffled batches.

    The returned object has one batch for each update.  Each process gets a part of this batch.
    """
    config = run.config
    return GoldBatches(run.data.train, batch_size=config.training.batch_size, seed=config.seed, processes=run.processes)


def build_policy(run: OpenRun) -> Policy:
    """Build the policy, the component that returns the sequences of each update.

    The policy has access to the teacher, the engine that generates the student's text, and the training data of the run.
    """
    config, models = run.config, run.models
    node, gold, settings = config.resolved_method.policy, build_gold(run), config.training
    marker = None if run.spans is None else build_marker(config, run.spans, models.tokenizer, models.end_ids)
    writes_log = run.processes.is_main and revises(node)
    log = _revision_log(run, marker) if writes_log else lambda revision: None
    tools = build_policy_tools(run, gold, log)
    rewrite = None if config.compat is None else partial(legacy_sequence, end_id=models.end_ids[0])
    source: Source = built(f"policy.kind = {kind_of(type(node))}", lambda: node.bind(tools), SOURCE)
    if (
        node.sampling is not None
        and isinstance(config.engine, LocalEngineConfig | VllmEngineConfig)
        and config.engine.interval > 1
    ):
        source = AheadSource(
            source,
            gold,
            num_steps=config.engine.ahead,
            updates=run.schedule.updates,
            weights_step=partial(_weights_step, _unwrapped(run.engine)),
        )
    corpus = None
    if run.corpus:
        size = settings.batch_size
        corpus = Shuffled(run.corpus, batch_size=size, seed=config.seed, purpose="corpus", processes=run.processes)
    return Policy(gold, source, marker, corpus=corpus, rewrite=rewrite, drawing=partial(_drawing, run))


def build_policy_tools(run: OpenRun, gold: GoldBatches, on_revision: Callable[[Revision], None]) -> PolicyTools:
    """Return the objects that a policy needs to create sequences, such as the engine.

    Args:
        run: The run, with loaded models and data.
        gold: The training examples in the order of training.
        on_revision: Function that receives each correction of student text.
    """
    config, models, teacher, settings = run.config, run.models, run.teacher, run.config.training
    text_teacher, scorer = None, None
    if teacher is not None and teacher.capabilities.generates:
        text_teacher = cast(TextTeacher, teacher)  # the capability `generates` declares this
    if teacher is not None and teacher.capabilities.statistics:
        size, device = settings.generation_batch_size, run.accelerator.device
        scorer = Scorer(student_reader(run), teacher, pad_id=models.pad_id, batch_size=size, device=device)
    return PolicyTools(
        engine=run.engine,
        teacher=text_teacher,
        scorer=scorer,
        gold=gold,
        processes=run.processes,
        updates=run.schedule.updates,
        end_ids=models.end_ids,
        response_tokens=config.data.tokens.response_tokens,
        batch_size=settings.generation_batch_size,
        seed=config.seed,
        folder=config.folder,
        on_revision=on_revision,
    )


def build_marker(config: Run, spans: SpanExtractor, tokenizer: Tokenizer, end_ids: Sequence[int]) -> SpanMarker:
    """Return the object that finds phrases in sequences and adds their token spans.

    Args:
        config: The run.
        spans: The object that finds phrases in a text.
        tokenizer: The student's tokenizer.
        end_ids: Ids of the end tokens.  These tokens, like all special tokens, are left out of the text in which phrases
            are found.
    """
    random_seed = config.seed if config.resolved_method.objective.span.placement == "random" else None
    return SpanMarker(spans, tokenizer, (*end_ids, *tokenizer.all_special_ids), random_seed)


def _revision_log(run: OpenRun, marker: SpanMarker | None) -> RevisionLog:
    """Return the log of the corrections of student text.

    It reads the student and a local teacher without prefix memory, so that logging has no effect on the text or the losses of
    training.
    """
    models, device, scorer = run.models, run.accelerator.device, None
    if models.teacher is not None:
        teacher = LocalTeacher(models.teacher, vocabulary=models.vocabulary, device=device)
        reader = student_reader(run, remembers=False)
        scorer = Scorer(reader, teacher, pad_id=models.pad_id, batch_size=2, device=device)
    return RevisionLog(run.config, models.tokenizer, run.schedule.updates, scorer, marker)


def _weights_step(engine: Engine, step: int) -> int:
    """Return the number of updates after which the engine's weights were copied.

    `step` is the current number of finished updates.  It is returned if the engine always uses the current weights.
    """
    synced = engine.synced_step if isinstance(engine, VllmEngine) else None
    return step if synced is None else synced


def _unwrapped(engine: Engine) -> Engine:
    """Return the engine inside the wrappers that count tokens or check results."""
    while isinstance(engine, MeteredEngine | CheckedEngine):
        engine = engine.engine
    return engine


class _Remembering(Protocol):
    """A teacher or engine with a prefix memory.

    A prefix memory stores the keys, values and hidden states of earlier texts.  They are reused for a later text with the
    same first tokens.
    """

    def remembering(self) -> AbstractContextManager[None]: ...


@contextmanager
def _drawing(run: OpenRun) -> Iterator[None]:
    """Context in which the policy may use the teacher, with prefix memories if the policy revises text.

    A sharded teacher that generates tokens is gathered as a whole, since each token needs a forward pass.
    """
    node = run.config.resolved_method.policy
    generates = node.needs.teacher_text or node.needs.mixture or node.needs.replacement
    placed = run.frozen.gathered() if generates else run.frozen.passes()
    with placed, remembering(run) if revises(node) else nullcontext():
        yield


@contextmanager
def remembering(run: OpenRun) -> Iterator[None]:
    """Context in which teacher and engine use their prefix memories, if they have any.

    A prefix memory stores the keys, values and hidden states of earlier texts.
    """
    with ExitStack() as stack:
        for part in (run.teacher, _unwrapped(run.engine)):
            if part is not None and part.capabilities.prefix_memory:
                stack.enter_context(cast(_Remembering, part).remembering())
        yield


def student_reader(run: OpenRun, *, remembers: bool = True) -> Callable[[Batch], tuple[torch.Tensor, Head]]:
    """Return a function that computes the student's hidden states for a batch.

    The returned function runs the student in evaluation mode and without gradient.  Its results are the hidden states at
    the positions `batch.position_N`, of shape [N, width], and the student's head.  If `remembers` is True and the engine
    has a prefix memory (stored states of texts), the function reuses these states, and adds the states of the batch to the
    memory.
    """
    reader, engine = PrefixReader(run.models.student), _unwrapped(run.engine)

    @torch.no_grad()
    def read(batch: Batch) -> tuple[torch.Tensor, Head]:
        run.student.eval()
        memory = engine.memory if remembers and isinstance(engine, LocalEngine) else None
        with run.accelerator.autocast():
            inputs = (batch.input_ids_BT, batch.attention_mask_BT, batch.position_N)
            hidden_ND = reader.rows(*inputs, memory, texts=batch.token_ids, remember=memory is not None)
        return hidden_ND, head(run.student.model, run.models.vocabulary)

    return read
