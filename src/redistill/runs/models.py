"""Loads teacher and student, and checks that their vocabularies match."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from redistill.config.decode import kind_of
from redistill.config.run import Run
from redistill.config.sections import StudentConfig, TeacherConfig
from redistill.data.alpaca import has_alpaca_jinja
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models import vocabulary
from redistill.models.attention import attention_note, attention_of, use_attention
from redistill.models.chat_templates import check_chat_templates
from redistill.models.families import head, position_limit
from redistill.models.initialise import cast_weights, student_from_layers
from redistill.models.layer_files import student_from_files
from redistill.models.load import (
    ModelConfig,
    end_token_ids,
    load_model,
    load_tokenizer,
    parameter_bytes,
    parameter_count,
)
from redistill.models.lora import add_lora, lora_notes
from redistill.models.quantised import is_quantised
from redistill.models.recompute import checkpoint_activations
from redistill.models.tokenizers import compatibility_warnings
from redistill.processes import signals
from redistill.processes.frozen import Frozen
from redistill.records import Json
from redistill.runs.stages import student_source, teacher_source
from redistill.teachers.served import ServedTeacherConfig
from redistill.teachers.store import TeacherStore


@dataclass(frozen=True, kw_only=True)
class Models:
    """Teacher and student of a run.

    Args:
        teacher: The language model of the local teacher; None if the run has no local teacher.
        student: The student's language model.
        tokenizer: The student's tokenizer.
        vocabulary: Number of classes (token ids) that the heads of teacher and student share.  The run ignores further
            classes of a head.
        end_ids: Ids of the student's end tokens.
        manifest: Name, number of parameters, size in bytes and attention implementation of each model, for run.json.
        notes: Sentences for the log, for example about differences between teacher and student.
        states: The store of the cached teacher; None if the teacher is not cached.
        frozen: How the parameters of the teacher are distributed over the processes.
    """

    teacher: CausalModel | None
    student: CausalModel
    tokenizer: Tokenizer
    vocabulary: int
    end_ids: tuple[int, ...]
    manifest: Mapping[str, Json] = field(default_factory=dict)
    notes: Sequence[str] = ()
    states: TeacherStore | None = None
    frozen: Frozen = field(default_factory=Frozen)

    @property
    def pad_id(self) -> int:
        """Id of the student's padding token."""
        return self.tokenizer.pad_token_id or 0


def load_models(
    config: Run,
    report: Callable[[str], None] = lambda line: None,
    load_teacher: Callable[[TeacherConfig], tuple[CausalModel, Tokenizer]] | None = None,
    device: torch.device | str = "cpu",
) -> Models:
    """Load the models of a run.

    If the run fine-tunes a model before distillation, the fine-tuned model is loaded.  For a cached teacher, the store is
    opened, and the teacher model is loaded only if the recipe sets `teacher.cache_new_text`.

    Args:
        config: The run.
        report: Function that is called with one line if a cached hash of a file is damaged or cannot be written.
        load_teacher: Function that loads the teacher; if the teacher's layers are read one after another, it returns
            a model of only a part of them.  None for the usual function.
        device: Device to which weights are read; see `load_model`.  Some models are on the CPU in any case.

    Raises:
        ConfigError: a model has too few positions for the length limits, or the folder of a cached teacher has no complete
            store.
        DataError: a file of the cached teacher is missing or damaged.
        ModelError: a model cannot be loaded.
        VocabularyError: teacher and student have different vocabularies.
    """
    source, taught_by = student_source(config), teacher_source(config)
    states = None if config.teacher_cache is None else TeacherStore.open(config.teacher_cache, report=report, poll=signals.poll)
    is_loaded = states is None or (isinstance(config.teacher, TeacherConfig) and config.teacher.is_loaded)
    load = partial(_load_teacher, device=device) if load_teacher is None else load_teacher
    taught = load(taught_by) if taught_by is not None and is_loaded else None
    student, tokenizer = _load_student(source, taught_by, taught, device, config.seed)
    notes = [] if source.lora is None else lora_notes(student)
    notes += _attention_notes([(student, source, "student"), (taught and taught[0], taught_by, "teacher")])
    check_positions(student, config.data.tokens, "student")
    check_chat_templates("student", tokenizer, config.data.tokens.template_arguments)
    size, manifest = head(student).num_classes, {"student": _about(student, config.student.model)}
    if taught is not None:
        check_positions(taught[0], config.data.tokens, "teacher")
        match = shared_vocabulary(*taught, student, tokenizer)
        size = match.size
        notes += compatibility_warnings(taught[1], tokenizer, chat=not has_alpaca_jinja(tokenizer))
        if match.padded:
            heads = f"{match.teacher_size} (teacher) and {match.student_size} (student) rows for the same vocabulary"
            notes.append(f"the heads have {heads}; only the first {size} rows are used")
    if states is not None:
        vocab = tokenizer.get_vocab()  # the hash of the teacher's vocabulary is compared when the data has been read
        size = vocabulary.match_vocabularies(vocab, vocab, states.layout.classes, size).size
    if config.teacher is not None:
        manifest["teacher"] = _about_teacher(config.teacher, taught_by, taught)
    return Models(
        teacher=None if taught is None else taught[0],
        student=student,
        tokenizer=tokenizer,
        vocabulary=size,
        end_ids=end_token_ids(student, tokenizer),
        manifest=manifest,
        notes=notes,
        states=states,
    )


def _attention_notes(models: Sequence[tuple[CausalModel | None, ModelConfig | None, str]]) -> list[str]:
    """Return a sentence for each model that does not use the attention implementation of its settings."""
    notes = [attention_note(model, source.attention, name) for model, source, name in models if model is not None and source]
    return [note for note in notes if note is not None]


def _load_teacher(source: TeacherConfig, device: torch.device | str) -> tuple[CausalModel, Tokenizer]:
    return load_model(source, source.quantise or "none", device if source.offload is None else "cpu")


def _load_student(
    source: StudentConfig,
    taught_by: ModelConfig | None,
    taught: tuple[CausalModel, Tokenizer] | None,
    device: torch.device | str,
    seed: int,
) -> tuple[CausalModel, Tokenizer]:
    """Return the student with its adapters, in the dtype of the recipe, and its tokenizer.

    Args:
        source: The student.
        taught_by: The teacher; None without a teacher.
        taught: The teacher's model and tokenizer; None if they are not loaded.
        device: Device to which weights are read.
        seed: Seed of the run, for the initial values of the adapters.
    """
    if source.model == "teacher":
        assert taught_by is not None and source.initialise is not None
        student, tokenizer = _teacher_layers(taught_by, taught, source.initialise.layers)
    else:
        student, tokenizer = load_model(source, "none" if source.lora is None else source.lora.quantise, device)
        if source.initialise is not None:
            student = student_from_layers(student, source.initialise.layers)
    cast_weights(student, torch.bfloat16 if source.dtype == "bfloat16" else torch.float32)
    use_attention(student, source.attention)
    if source.lora is not None:
        student = add_lora(student, source.lora, seed)
    if source.gradient_checkpointing:
        checkpoint_activations(student)
    return student, tokenizer


def _teacher_layers(
    source: ModelConfig, loaded: tuple[CausalModel, Tokenizer] | None, layers: int | tuple[int, ...]
) -> tuple[CausalModel, Tokenizer]:
    """Return a student that consists of layers of the teacher, and its tokenizer.

    Args:
        source: The teacher.
        loaded: The teacher's model and tokenizer; None if the teacher is cached.  If it is None or quantised, only these layers
            are read, unless the format of the files requires that the whole teacher is loaded.
        layers: Number or indices of the layers.
    """
    if loaded is not None and is_quantised(loaded[0]):
        loaded = None  # the student gets the weights of the files, which are not quantised
    if loaded is None and (student := student_from_files(source, layers)) is not None:
        return student, load_tokenizer(source)
    teacher, tokenizer = load_model(source) if loaded is None else loaded
    return student_from_layers(teacher, layers), tokenizer


def shared_vocabulary(
    teacher: nn.Module, teacher_tokenizer: Tokenizer, student: nn.Module, tokenizer: Tokenizer
) -> vocabulary.VocabularyMatch:
    """Return the number of classes that the output heads of both models share.

    The result also has the number of classes of each head.

    Raises:
        VocabularyError: the two tokenizers map tokens to different ids.
    """
    return vocabulary.match_vocabularies(
        teacher_tokenizer.get_vocab(), tokenizer.get_vocab(), head(teacher).num_classes, head(student).num_classes
    )


def check_positions(model: nn.Module, tokens: TokenizeConfig, name: str) -> None:
    """Check that a model has enough positions for a prompt and its response.

    Args:
        model: The language model.
        tokens: The length limits, in tokens.
        name: Name of the model, for the error message.

    Raises:
        ConfigError: prompt_tokens + response_tokens exceeds the model's number of positions.
    """
    limit, longest = position_limit(model), tokens.prompt_tokens + tokens.response_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"prompt_tokens + response_tokens = {longest}: the {name} has {limit} positions; lower one of the two limits"
        )


def _about_teacher(node: object, source: ModelConfig | None, loaded: tuple[CausalModel, Tokenizer] | None) -> dict[str, Json]:
    """Describe a teacher for run.json.

    `loaded` is None for a served or a cached teacher.
    """
    name = node.model if isinstance(node, ServedTeacherConfig) else kind_of(type(node)) if source is None else source.model
    return {"name": name} if loaded is None else _about(loaded[0], name)


def _about(model: nn.Module, name: str) -> dict[str, Json]:
    sizes = {"parameters": parameter_count(model), "bytes": parameter_bytes(model)}
    return {"name": name, **sizes, "attention": attention_of(model)}
