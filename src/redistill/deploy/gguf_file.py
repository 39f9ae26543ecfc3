"""Writes a model as a GGUF file, the format of llama.cpp and Ollama.

The gguf package writes the file. Tensors are converted one at a time, so little memory is needed in addition to the model.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from redistill.deploy.families import family_of, weights_of, write_settings
from redistill.deploy.vocabulary import vocabulary_of, write_vocabulary
from redistill.errors import ModelError
from redistill.interfaces import CausalModel, Tokenizer

Dtype = Literal["f16", "bf16", "f32"]
"""dtype of exported weights: float16, bfloat16 or float32."""


def write_gguf(path: Path, model: CausalModel, tokenizer: Tokenizer, *, label: str, dtype: Dtype) -> None:
    """Write a model and its tokenizer to a GGUF file.

    Vectors, norms and learned positions are written in float32, as llama.cpp requires.

    Args:
        path: The file, which must not exist.
        model: The model, with weights in a floating point dtype.
        tokenizer: The tokenizer of the model.
        label: Name of the model in the metadata.
        dtype: dtype of the matrices.

    Raises:
        UnsupportedError: redistill cannot write models of this family or tokenizers of this kind.
        ModelError: a weight is too large for float16.
        OSError: the file cannot be written.
    """
    import gguf

    family = family_of(model.config)
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size)
    kinds = {
        "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    }
    matrix, file_type = kinds[dtype]

    def kind_of(name: str, weight: torch.Tensor) -> gguf.GGMLQuantizationType:
        is_small = weight.ndim == 1 or name.endswith("_norm.weight") or name == "position_embd.weight"
        return gguf.GGMLQuantizationType.F32 if is_small else matrix

    writer = gguf.GGUFWriter(path, family.architecture)
    writer.add_name(label)
    writer.add_vocab_size(model.config.vocab_size)
    write_settings(writer, model.config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_vocabulary(writer, vocabulary, tokenizer)
    for name, weight in weights_of(model, family):
        kind = kind_of(name, weight)
        num_bytes = weight.numel() * (4 if kind == gguf.GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in weights_of(model, family):
            if dtype == "f16":
                check_float16(label, name, weight)
            writer.write_tensor_data(gguf.quantize(weight.float().cpu().numpy(), kind_of(name, weight)))
    finally:
        writer.close()


def check_float16(label: str, name: str, weight: torch.Tensor) -> None:
    """Check that the values of a weight are in the range of float16.

    Args:
        label: Name of the model for the error message.
        name: Name of the weight for the error message.
        weight: The weight.

    Raises:
        ModelError: a value is above 65,504 in absolute value.
    """
    if bool((weight.abs() > torch.finfo(torch.float16).max).any()):
        raise ModelError(f"{label}: {name} has values above 65,504, the largest float16; use --dtype bf16 or f32")
