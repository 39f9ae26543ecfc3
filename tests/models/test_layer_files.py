"""A student that is read from the teacher's files is bitwise equal to one that is copied from the loaded teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.models.initialise import student_from_layers
from redistill.models.layer_files import student_from_files
from redistill.models.load import ModelConfig, load_model
from tests.worlds import GPT2, LLAMA, write_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama, untied": {**LLAMA, "tie_word_embeddings": False},
    "gpt2": GPT2,
    "qwen2": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 8, "num_key_value_heads": 2},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [2, (1, 2)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_of_the_loaded_teacher(
    tmp_path: Path, family: str, layers: int | tuple[int, ...], dtype: Any
) -> None:
    source = ModelConfig(model=write_model(tmp_path / "teacher", FAMILIES[family], 1), dtype=dtype)
    mine, theirs = student_from_files(source, layers), student_from_layers(load_model(source)[0], layers)
    assert mine is not None and not mine.training
    own, other = mine.state_dict(), theirs.state_dict()
    assert own.keys() == other.keys()
    for name, weight in other.items():
        assert own[name].dtype == weight.dtype and torch.equal(own[name], weight), name
    assert mine.generation_config.to_dict() == theirs.generation_config.to_dict()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(mine(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_the_weights_of_other_layers_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelConfig(model=write_model(tmp_path / "teacher", LLAMA, 1))
    read: list[str] = []
    from redistill.models import layer_files

    filled = layer_files._filled

    def noted(family: Any, settings: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
        read.extend(weights)
        return filled(family, settings, weights, dtype)

    monkeypatch.setattr(layer_files, "_filled", noted)
    assert student_from_files(source, (0, 2)) is not None
    layers = {name.split(".")[2] for name in read if name.startswith("model.layers.")}
    assert layers == {"0", "1"} and "model.embed_tokens.weight" in read


def test_a_teacher_whose_dtype_is_that_of_its_file_is_left_to_the_loader(tmp_path: Path) -> None:
    assert student_from_files(ModelConfig(model=write_model(tmp_path / "teacher", LLAMA, 1), dtype="auto"), 2) is None
