"""Creates the store of a cached teacher: a folder with its hidden states."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from redistill.config.capabilities import why_gold
from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.contracts import Batch, EngineTools, Example, Generation, TokenSequence
from redistill.data.examples import answered_indices
from redistill.errors import ConfigError, RedistillError
from redistill.generation.local import LocalEngineConfig
from redistill.interfaces import CausalModel
from redistill.models.families import BodyCall, body, head
from redistill.models.streamed import StreamedBody
from redistill.policies import TeacherGenerated
from redistill.policies.generated import answered, requests_of
from redistill.policies.order import gold_sequence
from redistill.policies.teacher import STREAM
from redistill.processes import signals
from redistill.processes.memory import Halving
from redistill.runs.cache_models import SourceModels, source_models, streamed_files
from redistill.runs.cache_source import distils_corpus, source_of, text_node
from redistill.runs.disk_space import megabytes
from redistill.runs.load import DataSets, load_data, read_corpus
from redistill.storage import files, folders
from redistill.storage.cache import WAIT_S
from redistill.storage.lock import BusyError, locked
from redistill.teachers.filling import Joined, Plan, Reader, Rows, StoreWriter, store_bytes
from redistill.teachers.forms import Full, Sampled, label
from redistill.teachers.store import DTYPES, TeacherStore, is_complete
from redistill.training.progress import AnswerProgress, duration, report

Report = Callable[[str], None]
STREAMED_BYTES = 1_000_000_000
"""Minimum bytes of hidden states that one layer computes before the next layer is read from disk."""


def make_cache(config: Run, accelerator: Accelerator) -> None:
    """Create the teacher's store in the folder `teacher.cache`, if the recipe sets it.

    A complete store is not changed.

    If another process is making the store, the function waits until it is complete.

    Raises:
        ConfigError: the store is incomplete and the job has several processes, or the folder contains other files.
        RedistillError: any error that `fill_cache` raises.
    """
    folder = config.teacher_cache
    if folder is None or not isinstance(config.teacher, TeacherConfig) or is_complete(folder):
        return
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"teacher.cache = {config.teacher.cache!r}: is not complete, and a job of several processes cannot create it; "
            f"first run `redistill cache-teacher RECIPE --out {folder}` in one process"
        )
    while not is_complete(folder):
        try:
            fill_cache(config, accelerator, report)
        except BusyError:
            signals.poll()
            time.sleep(WAIT_S)


def fill_cache(config: Run, accelerator: Accelerator, note: Report, *, stream_layers: bool = False) -> None:
    """Store the teacher's hidden states for the training and validation data of a run.

    If the policy needs the teacher's answers, they are generated and stored as well.  An interrupted call is resumed by the
    same call.  A complete store is only checked.

    Args:
        config: The run, whose teacher is a `TeacherConfig` with `cache`.
        accelerator: The accelerator of the job.
        note: Function that is called with lines of text.
        stream_layers: Whether the teacher's layers are read from disk one after another, and each layer processes many
            sequences. This setting does not change the bits of the resulting folder.

    Raises:
        ConfigError: the teacher cannot be read layer by layer; or the folder contains other files, or the store of another
            teacher or of other data.
        BusyError: another process fills the store.
        DiskFullError: there is too little free space; the message has the free and the needed size.
        DataError, ModelError, VocabularyError: the models or the data cannot be used.
        Interrupted: a signal arrived.
    """
    folder = config.teacher_cache
    assert folder is not None and isinstance(config.teacher, TeacherConfig)
    try:
        with locked(folder):
            folders.remove_leftovers(folder)
            with streamed_files(config) if stream_layers else nullcontext() as layers:
                with signals.handled(at_once=True):
                    read = _read(config, source_models(config, layers, accelerator.device), note)
                signals.gather([])  # a signal that arrived above is raised here
                source = source_of(config, read.models.tokenizer, read.models.end_ids, read.data, read.corpus, note)
                if is_complete(folder):
                    TeacherStore.open(folder, report=note, poll=signals.poll).check(source)
                    note(f"cached teacher: {folder} is complete")
                else:
                    _fill(config, StoreWriter(folder, source), folder, read, accelerator, note)
    except RedistillError:
        with suppress(OSError):  # a folder with a part of the store is kept
            folder.rmdir()
        raise


class _Read(NamedTuple):
    """The models and data from which a store is made.

    Args:
        models: The teacher, and the properties of the student that determine the stored data.
        data: The data of the run.
        corpus: Blocks of text for which the pre-training term uses the teacher.
    """

    models: SourceModels
    data: DataSets
    corpus: Sequence[TokenSequence]


def _read(config: Run, models: SourceModels, note: Report) -> _Read:
    """Read the data of a run, and return them together with the models."""
    why = why_gold(config.resolved_method)
    data = load_data(config.data, models.tokenizer, config.seed, why_gold=why, rejected=None, report=note)
    updates = config.training.schedule(len(data.train)).updates
    return _Read(models, data, read_corpus(config, models.tokenizer, note, updates=updates))


def _fill(config: Run, writer: StoreWriter, folder: Path, read: _Read, accelerator: Accelerator, note: Report) -> None:
    """Store the teacher's hidden states of all sequences of a run.

    If the policy trains on answers of the teacher, they are generated and stored first.
    """
    settings, teacher = config.training, config.teacher
    assert isinstance(teacher, TeacherConfig)
    examples = [read.data.train, read.data.validation_examples]
    rows: list[Rows] = [Rows(len(gold), partial(_gold, each, gold)) for each in examples if (gold := answered_indices(each))]
    model = read.models.teacher
    if not isinstance(model, StreamedBody):
        model.to(accelerator.device).eval().requires_grad_(False)
        if (node := text_node(config)) is not None:
            texts = _answers(config, node, writer, read, model, accelerator, note)
            rows.append(Rows(len(texts), lambda index: answered(read.data.train[index], texts[index].token_ids, "teacher")))
    if distils_corpus(config):
        rows.append(Rows(len(read.corpus), read.corpus.__getitem__))
    reader = reader_of(teacher, model, read.models.vocabulary, read.models.pad_id, settings.micro_batch_size)
    plan = Plan(Joined(rows), reader.row_bytes)
    _announce(plan, reader, folder, note)
    writer.states(plan, reader, AnswerProgress("cached teacher", note, unit="sequences"))


def _answers(
    config: Run,
    node: TeacherGenerated,
    writer: StoreWriter,
    read: _Read,
    model: CausalModel,
    accelerator: Accelerator,
    note: Report,
) -> list[Generation]:
    """Generate and store the teacher's answers to the training prompts."""
    settings = config.training
    engine = LocalEngineConfig().build(
        EngineTools(
            student=model,
            teacher=None,
            tokenizer=read.models.tokenizer,
            vocabulary=read.models.vocabulary,
            end_ids=read.models.end_ids,
            pad_id=read.models.pad_id,
            batch_size=Halving("training.generation_batch_size", settings.generation_batch_size),
            autocast=accelerator.autocast,
        )
    )
    return writer.texts(
        requests_of(read.data.train, config.data.tokens.response_tokens, config.seed, STREAM),
        node.teacher_sampling,
        engine.generate,
        batch_size=settings.generation_batch_size,
        progress=AnswerProgress("cached teacher", note),
    )


def reader_of(
    config: TeacherConfig, model: CausalModel | StreamedBody, vocabulary: int, pad_id: int, batch_size: int | None
) -> Reader:
    """Return the reader that fills a store.

    Args:
        config: The teacher, with the form of the store and the dtype of the stored states.
        model: The teacher's model, in eval mode and on its device; or an object that reads its layers from disk one after
            another.
        vocabulary: Number of classes that teacher and student share, from class 0 on; a compact form of the store has only
            these classes.
        pad_id: Padding token.
        batch_size: Maximum number of sequences per forward pass; if None, the number of tokens is limited instead.
    """
    form, streams = config.cache_form, isinstance(model, StreamedBody)
    classifier = head(model.first if isinstance(model, StreamedBody) else model, None if isinstance(form, Full) else vocabulary)
    dtype = classifier.weight_VD.dtype if config.cache_dtype == "auto" else DTYPES[config.cache_dtype]
    return Reader(
        read=model.read if isinstance(model, StreamedBody) else partial(_read_batches, body(model)),
        head=classifier,
        form=form,
        dtype=dtype,
        pad_id=pad_id,
        batch_size=batch_size,
        tokens_at_once=STREAMED_BYTES // (classifier.weight_VD.shape[1] * classifier.weight_VD.itemsize) if streams else 0,
    )


@torch.no_grad()
def _read_batches(hidden_states: BodyCall, batches: Sequence[Batch], tick: Callable[[float], None]) -> Iterator[torch.Tensor]:
    """Yield the last hidden states at the positions `position_N` of each batch."""
    for index, batch in enumerate(batches):
        tick(index / len(batches))
        yield hidden_states(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]


def _announce(plan: Plan, teacher: Reader, folder: Path, note: Report) -> None:
    """Report the size of the store and the time to fill it; check the disk space.

    Raises:
        DiskFullError: there is too little free space.
    """
    layout = plan.layout(teacher)
    needed, free = store_bytes(layout, teacher), files.disk.free_bytes(folder)
    existing = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if free < needed - existing:
        raise files.DiskFullError(
            f"{folder}: {megabytes(free)} are free and {megabytes(needed)} are needed for the cached teacher; free space, "
            "choose another folder, or set teacher.cache_dtype to bfloat16"
        )
    # Not estimated for a streamed teacher: all of its layers would be read from disk to time a few sequences.
    estimate = "" if teacher.tokens_at_once else f", about {duration(plan.seconds(teacher))} for all of it"
    row = f"{layout.width} x {layout.dtype}" if isinstance(teacher.form, Full) else label(teacher.form)
    size = f"{'at most ' if isinstance(teacher.form, Sampled) else ''}{megabytes(needed)}"
    counts = f"{layout.sequences:,} sequences, {layout.targets:,} targets of {row}"
    note(f"cached teacher: {counts}, {size}{estimate}")


def _gold(examples: Sequence[Example], indices: Sequence[int], index: int) -> TokenSequence:
    return gold_sequence(examples[indices[index]])
