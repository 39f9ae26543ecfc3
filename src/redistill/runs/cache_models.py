"""Loads the models that compute the stored hidden states of a cached teacher.

The teacher is loaded as a whole, or its layers are read from disk one after another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.errors import ConfigError
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.layer_files import LayerFiles, layer_files
from redistill.models.load import ModelConfig, end_token_ids, load_tokenizer
from redistill.models.streamed import StreamedBody
from redistill.runs.cache_source import text_node
from redistill.runs.models import check_positions, load_models, shared_vocabulary
from redistill.runs.stages import teacher_source


class SourceModels(NamedTuple):
    """The teacher, and those properties of the student on which the store depends.

    The weights of the student are not kept in memory.

    Args:
        teacher: The whole model; or an object that reads the layers of the teacher from disk one after another.
        tokenizer, vocabulary, end_ids, pad_id: Properties of the student; see `runs.models.Models`.
    """

    teacher: CausalModel | StreamedBody
    tokenizer: Tokenizer
    vocabulary: int
    end_ids: tuple[int, ...]
    pad_id: int


@contextmanager
def streamed_files(config: Run) -> Iterator[LayerFiles]:
    """Open the files of a run's teacher, to read its layers one after another.

    Raises:
        ConfigError: the files cannot be read layer by layer, or the policy needs text that the teacher generates.
    """
    source = teacher_source(config)
    assert source is not None
    if text_node(config) is not None:
        raise ConfigError(
            "--stream-layers: the policy teacher_generated needs text of the teacher, and each token of it needs all layers; "
            "leave out --stream-layers, or use another policy"
        )
    with layer_files(source) as layers:
        if layers is None:
            raise ConfigError(
                f"--stream-layers: {source.model}: a GGUF file, an adapter, a multimodal model, and dtype auto cannot be read "
                "layer by layer; leave out --stream-layers, or merge the adapter and set teacher.dtype"
            )
        if source.quantise is not None:
            raise ConfigError(
                f"--stream-layers: teacher.quantise = {source.quantise!r}: single layers cannot be quantised; leave out "
                "--stream-layers, or remove teacher.quantise"
            )
        yield layers


def source_models(config: Run, layers: LayerFiles | None, device: torch.device) -> SourceModels:
    """Load the models that compute the cached hidden states of a run.

    Args:
        config: The run.
        layers: The files of the teacher if its layers are read one after another; None to load the whole teacher.
        device: Device of the teacher's layers that are read one after another.
    """
    assert isinstance(config.teacher, TeacherConfig)
    student = replace(config.student, finetune=None, start="base", lora=None)  # its fine-tuning may be done later
    plain = replace(config, teacher=replace(config.teacher, cache=None, cache_new_text=False), student=student)
    if layers is None:
        models = load_models(plain)
        assert models.teacher is not None
        return SourceModels(models.teacher, models.tokenizer, models.vocabulary, models.end_ids, models.pad_id)
    body = StreamedBody(layers, device)
    if student.model == "teacher":  # a student of the teacher's layers has its vocabulary, and need not be loaded
        found = _own_vocabulary(plain, body)
    else:
        models = load_models(plain, load_teacher=partial(_first_layer, body))
        found = SourceModels(body, models.tokenizer, models.vocabulary, models.end_ids, models.pad_id)
    body.release_first()
    return found


def _own_vocabulary(config: Run, body: StreamedBody) -> SourceModels:
    """Return the models of a run whose student consists of layers of the teacher.

    Such a student has the vocabulary and the tokenizer of the teacher.
    """
    source = teacher_source(config)
    assert source is not None
    first, tokenizer = _first_layer(body, source)
    check_positions(first, config.data.tokens, "teacher")
    vocabulary = shared_vocabulary(first, tokenizer, first, tokenizer).size
    return SourceModels(body, tokenizer, vocabulary, end_token_ids(first, tokenizer), tokenizer.pad_token_id or 0)


def _first_layer(body: StreamedBody, source: ModelConfig) -> tuple[CausalModel, Tokenizer]:
    """Return a model with the teacher's first layer and head, and the tokenizer."""
    return body.first, load_tokenizer(source)
