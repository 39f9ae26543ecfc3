"""Makes the store of a cached teacher, and describes what its states depend on."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from redistill.config.capabilities import why_gold
from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.contracts import Batch, EngineTools, Example, TokenSequence
from redistill.data.examples import answered_indices, digest_of
from redistill.errors import ConfigError, RedistillError
from redistill.generation.local import LocalEngineConfig
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.families import body, head
from redistill.models.model_hashes import model_hashes
from redistill.policies import TeacherGenerated
from redistill.policies.generated import answered, requests_of
from redistill.policies.order import gold_sequence
from redistill.policies.teacher import STREAM
from redistill.processes import signals
from redistill.processes.memory import Halving
from redistill.records import Json
from redistill.runs.disk_space import megabytes
from redistill.runs.load import DataSets, load_data, read_corpus
from redistill.runs.models import Models, load_models
from redistill.runs.stages import teacher_source
from redistill.storage import files, folders
from redistill.storage.cache import WAIT_S
from redistill.storage.file_hash import file_hash
from redistill.storage.lock import BusyError, locked
from redistill.teachers.filling import Joined, Plan, Reader, Rows, StoreWriter, store_bytes
from redistill.teachers.hidden_states import DTYPES, HiddenStates, is_complete
from redistill.training.progress import AnswerProgress, duration, report

Report = Callable[[str], None]


def make_cache(config: Run, accelerator: Accelerator) -> None:
    """Make the store of `teacher.cache` if the recipe has one and it is not complete.

    If another process is making the store, the function waits until it is complete.

    Raises:
        ConfigError: the job has several processes, or the folder contains something else.
        RedistillError: any error that `fill_cache` raises.
    """
    folder = config.teacher_cache
    if folder is None or not isinstance(config.teacher, TeacherConfig) or is_complete(folder):
        return
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"teacher.cache = {config.teacher.cache!r}: is not complete, and a job of several processes does not make it; "
            f"first run `redistill cache-teacher RECIPE --out {folder}` in one process"
        )
    while not is_complete(folder):
        try:
            fill_cache(config, accelerator, report)
        except BusyError:
            signals.poll()
            time.sleep(WAIT_S)


def fill_cache(config: Run, accelerator: Accelerator, note: Report) -> None:
    """Store the teacher's hidden states for the training and validation data of a run.

    If the policy needs the teacher's answers, they are generated and stored as well.  An interrupted call is resumed by the
    same call.  A complete store is only checked.

    Args:
        config: The run, whose teacher is a `TeacherConfig` with `cache`.
        accelerator: The accelerator of the job.
        note: Function that is called with lines of text.

    Raises:
        ConfigError: the folder contains something else, or the store of another teacher or of other data.
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
            with signals.handled(at_once=True):
                read = _read(config, note)
            signals.gather([])  # a signal that arrived above is raised here
            source = source_of(config, read.models.tokenizer, read.models.end_ids, read.data, read.corpus, note)
            if is_complete(folder):
                HiddenStates.open(folder, report=note, poll=signals.poll).check(source)
                note(f"cached teacher: {folder} is complete")
            else:
                _fill(config, StoreWriter(folder, source), folder, read, accelerator, note)
    except RedistillError:
        with suppress(OSError):  # a folder with a part of the store is kept
            folder.rmdir()
        raise


class _Read(NamedTuple):
    """What a store is made from.

    Args:
        models: Teacher and student; the student gives the vocabulary and the end tokens.
        data: The data of the run.
        corpus: Blocks of text for which the pre-training term uses the teacher.
    """

    models: Models
    data: DataSets
    corpus: Sequence[TokenSequence]


def _read(config: Run, note: Report) -> _Read:
    """Load the models without the cache, and read the data."""
    assert isinstance(config.teacher, TeacherConfig)
    student = replace(config.student, finetune=None, start="base", lora=None)  # its fine-tuning may follow
    models = load_models(replace(config, teacher=replace(config.teacher, cache=None), student=student))
    why = why_gold(config.resolved_method)
    data = load_data(config.data, models.tokenizer, config.seed, why_gold=why, rejected=None, report=note)
    updates = config.training.schedule(len(data.train)).updates
    return _Read(models, data, read_corpus(config, models.tokenizer, note, updates=updates))


def _fill(config: Run, writer: StoreWriter, folder: Path, read: _Read, accelerator: Accelerator, note: Report) -> None:
    """Generate the answers if they are needed, and store the states of all sequences."""
    models, settings = read.models, config.training
    assert models.teacher is not None and isinstance(config.teacher, TeacherConfig)
    model = models.teacher.to(accelerator.device).eval().requires_grad_(False)
    examples = [read.data.train, read.data.validation_examples]
    rows: list[Rows] = [Rows(len(gold), partial(_gold, each, gold)) for each in examples if (gold := answered_indices(each))]
    if (node := _text_node(config)) is not None:
        engine = LocalEngineConfig().build(
            EngineTools(
                student=model,
                teacher=None,
                tokenizer=models.tokenizer,
                vocabulary=models.vocabulary,
                end_ids=models.end_ids,
                pad_id=models.pad_id,
                batch_size=Halving("training.generation_batch_size", settings.generation_batch_size),
                autocast=accelerator.autocast,
            )
        )
        texts = writer.texts(
            requests_of(read.data.train, config.data.tokens.response_tokens, config.seed, STREAM),
            node.teacher_sampling,
            engine.generate,
            batch_size=settings.generation_batch_size,
            progress=AnswerProgress("cached teacher", note),
        )
        rows.append(Rows(len(texts), lambda index: answered(read.data.train[index], texts[index].token_ids, "teacher")))
    if _distils_corpus(config):
        rows.append(Rows(len(read.corpus), read.corpus.__getitem__))
    teacher = reader_of(config.teacher, model, models.pad_id, settings.micro_batch_size)
    plan = Plan(Joined(rows), teacher.row_bytes)
    _announce(plan, teacher, folder, note)
    writer.states(plan, teacher, AnswerProgress("cached teacher", note, unit="sequences"))


def reader_of(config: TeacherConfig, model: CausalModel, pad_id: int, batch_size: int | None) -> Reader:
    """Return the reader that fills a store.

    Args:
        config: The teacher, with the dtype of the stored states.
        model: Its model, in eval mode and on its device.
        pad_id: Padding token.
        batch_size: Maximum number of sequences per forward pass; if None, the number of tokens is limited.
    """
    hidden_states, classifier = body(model), head(model)
    dtype = classifier.weight_VD.dtype if config.cache_dtype == "auto" else DTYPES[config.cache_dtype]

    @torch.no_grad()
    def read(batch: Batch) -> torch.Tensor:
        return hidden_states(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]

    return Reader(read=read, head=classifier, dtype=dtype, pad_id=pad_id, batch_size=batch_size)


def _announce(plan: Plan, teacher: Reader, folder: Path, note: Report) -> None:
    """Report the size and the estimated time of a store; check the disk space.

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
    seconds = duration(plan.seconds(teacher))
    counts = f"{layout.sequences:,} sequences, {layout.targets:,} targets of {layout.width} x {layout.dtype}"
    note(f"cached teacher: {counts}, {megabytes(needed)}, about {seconds} for all of it")


def _gold(examples: Sequence[Example], indices: Sequence[int], index: int) -> TokenSequence:
    return gold_sequence(examples[indices[index]])


# --- what the states depend on ------------------------------------------------------------------------------------------


def source_of(
    config: Run,
    tokenizer: Tokenizer,
    end_ids: Sequence[int],
    data: DataSets,
    corpus: Sequence[TokenSequence],
    note: Report,
) -> dict[str, Json]:
    """Describe what the hidden states of a run's cached teacher depend on.

    Args:
        config: The run.
        tokenizer: The tokenizer of the student.
        end_ids: End tokens of the student.
        data: The data of the run.
        corpus: Blocks of text for the pre-training term.
        note: Function that is called with one line if a cached hash of a file is damaged or cannot be written.

    Returns:
        Hashes and settings by name.  The hashes of the teacher's files are included if the recipe names the teacher's model.
        Causes come before effects: another tokenizer or template also changes the data.
    """
    found: dict[str, Json] = {}
    teacher, tokens = teacher_source(config), config.data.tokens
    if teacher is not None:
        hashes = model_hashes(teacher, partial(file_hash, report=note, poll=signals.poll))
        found |= {f"teacher {part}": sha256 for part, sha256 in hashes.items()}
        found |= {"teacher revision": teacher.revision, "teacher dtype": teacher.dtype, "cache_dtype": teacher.cache_dtype}
    template = tokens.template if tokens.template != "chat" else _hash(tokenizer.chat_template)
    found |= {"tokenizer": _hash(tokenizer.get_vocab()), "template": template}
    found |= {"training data": digest_of(data.train), "validation data": digest_of(data.validation_examples)}
    if _distils_corpus(config):
        found["corpus"] = digest_of(corpus)
    if (node := _text_node(config)) is not None:
        settings = [node.temperature, node.top_p, tokens.response_tokens, config.seed, list(end_ids)]
        found["teacher_generated"] = _hash(settings)
    return found


def _distils_corpus(config: Run) -> bool:
    pretraining = config.resolved_method.objective.pretraining
    return pretraining is not None and pretraining.divergence_share > 0 and bool(config.data.corpus)


def _text_node(config: Run) -> TeacherGenerated | None:
    """Return the policy that uses the teacher's answers; None if no policy does.

    Raises:
        ConfigError: an external policy uses the teacher's text.
    """
    policy: object = config.resolved_method.policy
    if not config.resolved_method.policy.needs.teacher_text:
        return None
    while not isinstance(policy, TeacherGenerated):
        policy = getattr(policy, "source", None)
        if policy is None:
            raise ConfigError(
                "policy: uses text that the teacher generates, which is stored only for the policy teacher_generated; use this "
                "policy, or a teacher that is not cached"
            )
    return policy


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
